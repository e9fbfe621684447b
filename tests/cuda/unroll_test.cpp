// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/unroll.hpp>

#include <gtest/gtest.h>

namespace kvtilt::cuda {
namespace {

TEST(Unroll, OpaqueValuesAreWhatTheyWere) {
  int sum = 0;
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < 4; ++i) sum += opaque(i);
  EXPECT_EQ(sum, 6);
}

}  // namespace
}  // namespace kvtilt::cuda
