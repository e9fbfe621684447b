// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/arguments.hpp>

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

namespace kvtilt::cuda {
namespace {

/// Kernel parameters are copied as bytes and may take at most 4 KB before CUDA 12.1.
static_assert(std::is_trivially_copyable_v<AttendArguments>);
static_assert(sizeof(AttendArguments) <= 4096);

TEST(AttendArguments, CountRowsAndHeads) {
  LayerView layer{};
  layer.kv_heads = 4;
  layer.key_dim = 16;
  const float memory[1] = {};
  float out[1] = {};
  const AttendArguments arguments =
      make_arguments(layer, {nullptr, 2}, {nullptr, 5}, TensorView(memory, 10, 12, 16),
                     MutableTensorView(out, 10, 12, 16), nullptr, {});
  EXPECT_EQ(arguments.queries(1), 5);
  EXPECT_EQ(arguments.rows.first(1), 5);
  EXPECT_EQ(arguments.row_count, 10);
  EXPECT_EQ(arguments.gqa_ratio, 3);
}

TEST(AttendArguments, WorkspacePartsFollowEachOther) {
  std::vector<float> memory(most_attend_blocks + 2 * 3 * 8 * (16 + 2));
  const LaidOutWorkspace laid_out(memory.data(), 3, 8, 16);
  EXPECT_EQ(static_cast<void*>(laid_out.parts.arrivals), memory.data());
  EXPECT_EQ(laid_out.parts.partial_outputs, memory.data() + most_attend_blocks);
  EXPECT_EQ(laid_out.parts.partial_states - laid_out.parts.partial_outputs, 2 * 3 * 8 * 16);
  EXPECT_EQ(laid_out.bytes, memory.size() * 4);
  const LaidOutWorkspace measured(nullptr, 3, 8, 16);
  EXPECT_EQ(measured.bytes, laid_out.bytes);
  EXPECT_EQ(measured.parts.arrivals, nullptr);
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

TEST(AttendArguments, ATreeHasItsRowsAndAtMostAsManyTokensAsAWordHasBits) {
  AttendRules rules;
  const std::int32_t tree_tokens[] = {0, 7, 65, 7};
  rules.tree_tokens = tree_tokens;
  EXPECT_EQ(rules.new_tokens(1, 5), 5) << "no mask";
  const std::uint64_t mask[1] = {};
  rules.tree_mask = mask;
  EXPECT_EQ(rules.new_tokens(0, 5), 5);
  EXPECT_EQ(rules.new_tokens(1, 5), 7);
  EXPECT_EQ(rules.new_tokens(2, 5), 64);
  EXPECT_EQ(rules.new_tokens(3, 65), 65) << "causal: more rows than bits";
  EXPECT_EQ(rules.new_tokens(3, 0), 0) << "nothing is asked of this sequence";
}

TEST(AttendArguments, SayWhatIsAskedForInTheTermsOfKernels) {
  LayerView layer{};
  layer.kv_heads = 2;
  layer.key_dim = 64;
  layer.window = 300;
  layer.keep_sinks = 1;
  float numbers[1] = {};
  const TensorView queries(numbers, 6, 8, 64);
  const MutableTensorView out(numbers, 6, 8, 32);
  const AttendArguments plain = make_arguments(layer, {nullptr, 3}, {nullptr, 2}, queries,
                                               out.with_strides(900, 90), numbers, {});
  EXPECT_EQ(plain.queries(2), 2);
  EXPECT_EQ(plain.query_heads, 8);
  EXPECT_EQ(plain.out_token_stride, 900);
  EXPECT_EQ(plain.out_head_stride, 90);
  EXPECT_FLOAT_EQ(plain.rules.scale, 0.125f * log2_e) << "1 / sqrt(key_dim)";
  EXPECT_EQ(plain.rules.window, 300) << "the layer's";
  EXPECT_EQ(plain.rules.keep_sinks, 1);
  DeviceAttendOptions options;
  options.scale = 2.0f;
  options.soft_cap = 4.0f;
  options.window = 7;
  const AttendRules capped =
      make_arguments(layer, {nullptr, 3}, {nullptr, 2}, queries, out, nullptr, options).rules;
  EXPECT_FLOAT_EQ(capped.scale, 0.5f) << "of tanh's argument";
  EXPECT_FLOAT_EQ(capped.soft_cap, 4.0f * log2_e);
  EXPECT_EQ(capped.window, 7);
}

}  // namespace
}  // namespace kvtilt::cuda
