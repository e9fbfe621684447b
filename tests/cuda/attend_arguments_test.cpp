// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attend_arguments.hpp>

#include <gtest/gtest.h>

#include <type_traits>

namespace kvtilt::cuda {
namespace {

/// Kernel parameters: copied as bytes, and at most 4 KB before CUDA 12.1.
static_assert(std::is_trivially_copyable_v<AttendArguments>);
static_assert(sizeof(AttendArguments) <= 4096);

TEST(AttendArguments, CountRowsOfAKvHead) {
  AttendArguments arguments{};
  arguments.layer.kv_heads = 4;
  arguments.query_heads = 12;
  arguments.queries = 5;
  EXPECT_EQ(arguments.ratio(), 3);
  EXPECT_EQ(arguments.rows(), 15);
}

TEST(AttendArguments, AskForNothingSpecialUnlessTold) {
  const AttendRules rules;
  EXPECT_EQ(rules.soft_cap, 0.0f);
  EXPECT_EQ(rules.window, 0);
  EXPECT_EQ(rules.first_position, 0);
  EXPECT_EQ(rules.alibi_slopes, nullptr);
  EXPECT_EQ(rules.sink_logits, nullptr);
  EXPECT_EQ(rules.tree_mask, nullptr);
}

}  // namespace
}  // namespace kvtilt::cuda
