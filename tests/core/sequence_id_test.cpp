// SPDX-License-Identifier: MIT
#include <kvtilt/core/sequence_id.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

TEST(SequenceId, NamesNothingUntilACacheGivesIt) {
  EXPECT_EQ(SequenceId{}.generation, 0u);
  EXPECT_NE((SequenceId{3, 1}), (SequenceId{3, 2}));
  EXPECT_NE((SequenceId{3, 1}), (SequenceId{2, 1}));
}

}  // namespace
}  // namespace kvtilt
