// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/append.hpp>

#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace kvtilt::test {
namespace {

TEST(Append, OneTokenAtATimeEqualsTheCpu) {
  DeviceProgram program({.shape = LayerShape{2, 64, 64},
                         .recipe = {key_format(4), value_format(2)},
                         .page_tokens = 32,
                         .recent_tokens = 32},
                        1);
  for (int step = 0; step < 140 && !HasFailure(); ++step)
    program.append({0, 1}, {1, 1}, emulate_append);
}

TEST(Append, LatentsEqualTheCpu) {
  for (const Recipe& recipe :
       {Recipe{key_format(8), in_keys}, Recipe{key_format(3, Granularity::PerToken, 48), in_keys},
        Recipe{{}, in_keys}}) {
    DeviceProgram program({.shape = LayerShape::latent(96, 32),
                           .recipe = recipe,
                           .page_tokens = 32,
                           .recent_tokens = 32},
                          15);
    program.append({0, 1}, {110, 3}, emulate_append);
    for (int step = 0; step < 40 && !HasFailure(); ++step)
      program.append({0, 1}, {1, 2}, emulate_append);
  }
}

TEST(Append, AStepOfManySequencesIsNoPrompt) {
  EXPECT_EQ(cuda::expected_tokens(64, 64, {}), 1);
  EXPECT_EQ(cuda::expected_tokens(65, 64, {}), 2);
  EXPECT_EQ(cuda::expected_tokens(512, 1, {}), 512);
  const std::int32_t mixed[] = {1, 300, 1};
  EXPECT_EQ(cuda::expected_tokens(302, 3, mixed), 300);
}

TEST(Append, RaggedBatchesSealAnyNumberOfPages) {
  for (const ElementType type : {ElementType::F16, ElementType::BF16, ElementType::F32}) {
    DeviceProgram program({.shape = LayerShape{3, 80, 64},
                           .recipe = {key_format(4), value_format(4)},
                           .page_tokens = 64,
                           .recent_tokens = 70,
                           .sequences = 4,
                           .pages_each = 12,
                           .type = type},
                          2);
    program.append({2, 0, 3, 1}, {3, 0, 1, 500}, emulate_append);
    program.append({0, 2, 3}, {137, 64, 210}, emulate_append);
    program.append({1, 3}, {1, 63}, emulate_append);
    program.append({3, 2, 0, 1}, {2, 65, 1, 128}, emulate_append);
    if (HasFailure()) return;
  }
}

TEST(Append, WindowsFreeWhatTheCpuFrees) {
  for (const int window : {1, 64, 100}) {
    for (const int sinks : {0, 4}) {
      LayerShape shape{1, 64, 64, window};
      DeviceProgram program({.shape = shape,
                             .recipe = {key_format(4), value_format(4)},
                             .page_tokens = 32,
                             .sink_tokens = sinks,
                             .recent_tokens = 40,
                             .sequences = 2,
                             .pages_each = window / 32 + 2,
                             .capacity = 100000},
                            3);
      for (int step = 0; step < 15 && !HasFailure(); ++step)
        program.append({0, 1}, {program.random().below(60), program.random().below(200)},
                       emulate_append);
      if (HasFailure()) {
        ADD_FAILURE() << "window " << window << ", sinks " << sinks;
        return;
      }
    }
  }
}

TEST(Append, TheOrderOfBlocksDoesNotMatter) {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    DeviceProgram program({.shape = LayerShape{4, 64, 64},
                           .recipe = {key_format(3), value_format(8)},
                           .page_tokens = 64,
                           .recent_tokens = 0},
                          4);
    LaunchOrder order;
    order = {LaunchOrder::Shuffled, static_cast<std::uint32_t>(seed)};
    program.append({1, 0}, {130, 70}, emulate_append, order);
  }
}

TEST(Append, BlocksOfATeamShareThePagesOfItsSequences) {
  struct Case {
    LayerShape shape;
    Recipe recipe;
    int page_tokens;
    int recent_tokens;
    ElementType type = ElementType::F16;
  };
  const Format per_token{3, Granularity::PerToken, 32, RangeRule::MinMse};
  const Format per_channel{5, Granularity::PerChannel, 16, RangeRule::MinMax};
  for (const Case& one : {Case{{2, 128, 128}, {key_format(4), value_format(2)}, 64, 64},
                          Case{{1, 112, 80}, {per_token, per_channel}, 64, 1, ElementType::BF16},
                          Case{{2, 64, 192}, {{}, value_format(1)}, 32, 40, ElementType::F32},
                          Case{{1, 64, 64}, {per_channel, {}}, 128, 7}}) {
    DeviceProgram program({.shape = one.shape,
                           .recipe = one.recipe,
                           .page_tokens = one.page_tokens,
                           .recent_tokens = one.recent_tokens,
                           .sequences = 3,
                           .type = one.type},
                          7);
    // Several sequences seal in one step of few tokens each; one step appends many tokens to a
    // sequence.
    const int full = 4 + one.recent_tokens + one.page_tokens;
    program.append({2, 0, 1}, {full - 1, full - 8, full - 3}, emulate_append);
    for (std::uint32_t step = 0; step < 12 && !HasFailure(); ++step)
      program.append({1, 2, 0}, {1, step % 4 == 3 ? 0 : 2, step == 7 ? one.page_tokens + 3 : 3},
                     emulate_append, {LaunchOrder::Shuffled, step});
    if (HasFailure()) return;
  }
}

TEST(Append, SeveralTeams) {
  constexpr int sequences = 37;
  DeviceProgram program({.shape = LayerShape{2, 64, 64},
                         .recipe = {key_format(4), value_format(2)},
                         .page_tokens = 32,
                         .recent_tokens = 32,
                         .sequences = sequences,
                         .pages_each = 3},
                        8);
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> counts;
  for (int i = 0; i < sequences; ++i) {
    slots.push_back((i * 5 + 3) % sequences);
    counts.push_back(i % 11 == 0 ? 0 : 58 + i % 12);
  }
  program.append(slots, counts, emulate_append, {LaunchOrder::Backward});
  for (std::uint32_t step = 0; step < 4 && !HasFailure(); ++step)
    program.append(slots, std::vector<std::int32_t>(sequences, 1), emulate_append,
                   {LaunchOrder::Shuffled, step});
}

TEST(Append, SlotsBelowZeroAreNobody) {
  DeviceProgram program({.shape = LayerShape{2, 64, 64},
                         .recipe = {key_format(4), value_format(2)},
                         .page_tokens = 32,
                         .recent_tokens = 32,
                         .sequences = 2},
                        9);
  program.append({-1, 1, -7, 0}, {3, 67, 1, 66}, emulate_append);
  program.append({1, 0, -1}, {1, 2, 0}, emulate_append);
  program.append({-1, -1}, {1, 70}, emulate_append);
  std::vector<std::int32_t> slots(40, -1);  // a team of padding, and one with a sequence
  slots[37] = 1;
  program.append(slots, std::vector<std::int32_t>(40, 2), emulate_append, {LaunchOrder::Backward});
  EXPECT_EQ(program.device().record().fault, cuda::DeviceFault::None);
}

/// Appends 100 tokens of zeros except for the elements `hostile`, `step` tokens at a time; returns
/// the record.
cuda::DeviceRecord append_hostile(ElementType type, std::int64_t pad, const Recipe& recipe,
                                  const std::vector<float>& hostile, std::vector<F16>& stored,
                                  int step = 100) {
  constexpr int dim = 64;
  constexpr int tokens = 100;
  const LayerShape shape{1, dim, dim};
  const Recipe resolved = *resolve_recipe(recipe, shape, 64);
  EmulatedLayer layer(shape, {resolved}, {64, 4, 128, 0}, 1, 4);
  const std::int64_t stride = dim + pad;
  std::vector<float> wide(static_cast<std::size_t>(tokens * stride), 0.0f);
  for (std::size_t i = 0; i < hostile.size(); ++i)
    wide[static_cast<std::size_t>(37 * stride) + 11 + i] = hostile[i];
  std::vector<F16> f16;
  std::vector<BF16> bf16;
  for (const float x : wide) {
    f16.push_back(to_f16(x));
    bf16.push_back(to_bf16(x));
  }
  TensorView rows(wide.data(), tokens, 1, dim);
  if (type == ElementType::F16) rows = TensorView(f16.data(), tokens, 1, dim);
  if (type == ElementType::BF16) rows = TensorView(bf16.data(), tokens, 1, dim);
  const std::int32_t slot = 0;
  rows = rows.with_strides(stride, dim);
  for (int done = 0; done < tokens; done += step) {
    TensorView part = rows;
    part.tokens = step;
    part.data = static_cast<const std::byte*>(rows.data) +
                static_cast<std::size_t>(done * stride) * element_bytes(type);
    emulate_append({layer.view(), {&slot, 1}, part, part, {nullptr, step}}, {});
  }
  EXPECT_EQ(layer.state(0).length, tokens);
  const HeadLayout& head = layer.layout(PageKind::Tail).heads[0];
  const std::byte* block = layer.view().tail(0, 0, 0);
  stored.clear();
  for (std::size_t i = 0; i < hostile.size(); ++i)
    stored.push_back(*reinterpret_cast<const F16*>(
        block + head.value.codes +
        cuda::half_offset(Role::Values, head.value.matrix, 11 + static_cast<int>(i), 33)));
  return layer.record();
}

TEST(AppendHostile, UnstorableValuesAreClampedAndRecorded) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const ElementType type : {ElementType::F32, ElementType::F16, ElementType::BF16})
    for (const auto& [pad, step] : {std::pair{0, 100}, {1, 100}, {0, 5}, {1, 1}}) {
      std::vector<F16> stored;
      const Recipe recipe{key_format(4), value_format(4)};
      const cuda::DeviceRecord record =
          append_hostile(type, pad, recipe, {nan, -infinity, 1.0f, infinity, -nan}, stored, step);
      EXPECT_EQ(record.fault, cuda::DeviceFault::ElementRepaired);
      EXPECT_EQ(record.count, 8u);  // of keys and of values
      EXPECT_EQ(record.layer, 3);
      EXPECT_EQ(record.token, 37);
      EXPECT_TRUE(record.channel % 64 >= 11 && record.channel % 64 <= 15);
      EXPECT_FALSE(std::isfinite(record.value));
      EXPECT_EQ(to_float(stored[0]), 0.0f);
      EXPECT_EQ(to_float(stored[1]), -65504.0f);
      EXPECT_EQ(to_float(stored[2]), 1.0f);
      EXPECT_EQ(to_float(stored[3]), 65504.0f);
      EXPECT_EQ(to_float(stored[4]), 0.0f);

      const cuda::DeviceRecord one_bit =
          append_hostile(type, pad, {key_format(8), value_format(1)},
                         {32640.0f, 40000.0f, -40000.0f}, stored, step);
      EXPECT_EQ(one_bit.count, 2u);
      EXPECT_GE(one_bit.channel, 64);
      EXPECT_EQ(to_float(stored[0]), 32640.0f);
      EXPECT_EQ(to_float(stored[1]), 32752.0f);
      EXPECT_EQ(to_float(stored[2]), -32752.0f);
    }
  std::vector<F16> stored;
  EXPECT_EQ(append_hostile(ElementType::F32, 0, {}, {65505.0f, 65504.0f}, stored).count, 2u);
}

TEST(AppendHostile, RowsThatCannotBeMeantChangeNothing) {
  expect_bad_rows_are_refused(emulate_append);
}

TEST(AppendHostile, WhatDoesNotFitChangesNothing) {
  DeviceProgram program({.shape = LayerShape{2, 64, 64},
                         .recipe = {key_format(4), value_format(4)},
                         .recent_tokens = 0,
                         .pages_each = 2},
                        6);
  program.append({0, 1}, {10, 70}, emulate_append);
  std::vector<F16> zeros(2 * 64 * 310);
  const std::vector<std::int32_t> slots{0, 1};
  const std::vector<std::int32_t> indptr{0, 300, 310};
  const TensorView all(zeros.data(), 310, 2, 64);
  emulate_append({program.device().view(), {slots.data(), 2}, all, all, {indptr.data(), 0}}, {});
  const cuda::DeviceRecord& record = program.device().record();
  EXPECT_EQ(record.fault, cuda::DeviceFault::NoPageLeft);
  EXPECT_EQ(record.count, 1u);
  EXPECT_EQ(record.sequence, 0);
  EXPECT_EQ(record.token, 10);
  EXPECT_EQ(program.device().state(1).length, 80);
  program.expect_equal(0);
}

}  // namespace
}  // namespace kvtilt::test
