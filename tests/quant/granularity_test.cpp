// SPDX-License-Identifier: MIT
#include <kvtilt/quant/granularity.hpp>

#include "support/fp16_oracle.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt {
namespace {

TEST(Granularity, HasTwoKinds) {
  EXPECT_NE(Granularity::PerChannel, Granularity::PerToken);
  static_assert(sizeof(Granularity) == 1);
}

TEST(Granularity, LargestGroupSumsExactly) {
  const std::int64_t largest = test::fp16_units().back();
  EXPECT_EQ(largest, std::int64_t{65504} << 24);
  EXPECT_LE(largest * max_group, std::int64_t{1} << 53) << "in double";
  // One more factor of max_group: the product that decides the half of an element in a one-bit
  // group.
  EXPECT_LE(largest, INT64_MAX / max_group / max_group) << "in 64 bits";
}

}  // namespace
}  // namespace kvtilt
