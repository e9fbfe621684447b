// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/pack.hpp>

#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::FitRules;

void emulate_pack(const cuda::AppendArguments& arguments, LaunchOrder order) {
  EXPECT_TRUE(emulate(
      static_cast<int>(cuda::pack_blocks(arguments)), cuda::pack_threads,
      cuda::pack_shared_bytes(arguments.layer),
      [&](EmulatedThreads& threads) {
        if (arguments.layer.min_max_only != 0)
          cuda::pack<FitRules::MinMax>(threads, arguments);
        else
          cuda::pack<FitRules::All>(threads, arguments);
      },
      order));
}

/// Equally many rows per sequence, without indptr.
void emulate_even_pack(const cuda::AppendArguments& arguments, LaunchOrder order) {
  cuda::AppendArguments even = arguments;
  const std::int64_t each = arguments.rows.count(0);
  for (TensorView* const rows : {&even.keys, &even.values}) {
    rows->data = static_cast<const std::byte*>(rows->data) +
                 arguments.rows.first(0) * rows->token_stride *
                     static_cast<std::int64_t>(element_bytes(rows->type));
    rows->tokens = each * arguments.batch.count;
  }
  even.rows = {nullptr, static_cast<int>(each)};
  emulate_pack(even, order);
}

TEST(Pack, EqualsAppendOfTheCpu) {
  for (const ElementType type : {ElementType::F16, ElementType::BF16, ElementType::F32}) {
    DeviceProgram program({.shape = LayerShape{3, 80, 64},
                           .recipe = {key_format(4), value_format(4)},
                           .recent_tokens = 70,
                           .sequences = 4,
                           .pages_each = 20,
                           .type = type},
                          2);
    program.append({2, 0, 3, 1}, {3, 0, 1, 500}, emulate_pack);
    program.append({0, 2, 3}, {137, 640, 210}, emulate_pack);
    program.append({1, 3}, {1, 1}, emulate_append);
    program.append({1, 3}, {64, 63}, emulate_pack);
    program.append({3, 2, 0, 1}, {2, 65, 1, 328}, emulate_pack, {LaunchOrder::Backward});
    if (HasFailure()) return;
  }
}

TEST(Pack, Windows) {
  for (const int window : {1, 100, 200}) {
    const LayerShape shape{2, 64, 64, window};
    DeviceProgram program({.shape = shape,
                           .recipe = {key_format(4), value_format(8)},
                           .page_tokens = 32,
                           .recent_tokens = 40,
                           .pages_each = window / 32 + 2,
                           .capacity = 100000},
                          3);
    for (int step = 0; step < 8 && !HasFailure(); ++step)
      program.append({0, 1}, {program.random().below(60), program.random().below(500)},
                     emulate_pack, {LaunchOrder::Shuffled, static_cast<std::uint32_t>(step)});
  }
}

/// Each unit takes one or several tail blocks; two of them may share a ring slot.
TEST(Pack, ChunksGoOnWithATail) {
  for (const int recent : {0, 40, 160}) {
    for (const int window : {0, 150}) {
      DeviceProgram program({.shape = LayerShape{2, 32, 48, window},
                             .recipe = {key_format(4), value_format(2)},
                             .page_tokens = 32,
                             .recent_tokens = recent,
                             .sequences = 3,
                             .pages_each = 40,
                             .capacity = 100000},
                            6);
      for (std::uint32_t step = 0; step < 7 && !HasFailure(); ++step)
        program.append({1, 2, 0},
                       {program.random().below(90), 3 + program.random().below(300),
                        20 + program.random().below(30)},
                       emulate_pack, {LaunchOrder::Shuffled, step});
      if (HasFailure()) {
        ADD_FAILURE() << "recent " << recent << ", window " << window;
        return;
      }
    }
  }
}

TEST(Pack, LongPromptsBesideDecodes) {
  DeviceProgram program({.shape = LayerShape{2, 32, 32},
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .recent_tokens = 32,
                         .sequences = 40,
                         .pages_each = 30},
                        7);
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> counts;
  for (int i = 0; i < 40; ++i) {
    slots.push_back((i * 7 + 3) % 40);
    counts.push_back(i == 17 ? 700 : i == 39 ? 33 : i % 5 == 0 ? 0 : 1);
  }
  program.append(slots, counts, emulate_pack, {LaunchOrder::Shuffled, 1});
  program.append({5}, {130}, emulate_pack);
  counts[17] = 0;
  counts[3] = 64;
  // Rows beyond indptr belong to no sequence (padding) and leave blocks without work.
  program.append(slots, counts, [](cuda::AppendArguments arguments, LaunchOrder order) {
    arguments.keys.tokens += 500;
    arguments.values.tokens += 500;
    emulate_pack(arguments, order);
  });
}

TEST(Pack, AThousandSequences) {
  constexpr int sequences = 1024;
  DeviceProgram program({.shape = LayerShape{1, 16, 16},
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .sink_tokens = 0,
                         .recent_tokens = 0,
                         .sequences = sequences,
                         .pages_each = 3},
                        8);
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> counts;
  for (int i = 0; i < sequences; ++i) {
    slots.push_back((i * 7 + 3) % sequences);
    counts.push_back(i % 100 == 99 ? 70 : i % 3);
  }
  program.append(slots, counts, emulate_pack, {LaunchOrder::Backward});
}

TEST(Pack, RowsInEqualShares) {
  DeviceProgram program({.shape = LayerShape{2, 32, 32},
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .recent_tokens = 40,
                         .sequences = 3,
                         .pages_each = 20},
                        9);
  program.append({2, 0, 1}, {77, 77, 77}, emulate_even_pack);
  program.append({1, 2, 0}, {100, 100, 100}, emulate_even_pack, {LaunchOrder::Backward});
  program.append({1}, {150}, emulate_even_pack);
  program.append({0, 1}, {1, 1}, emulate_even_pack);
}

TEST(Pack, FormatsAndShapes) {
  struct Case {
    int key_dim;
    int value_dim;
    Recipe recipe;
    int page_tokens;
  };
  const Format per_token{3, Granularity::PerToken, 64, RangeRule::MinMse};
  const Format per_channel{5, Granularity::PerChannel, 32, RangeRule::MinMax};
  for (const Case& one : {Case{128, 128, {key_format(1), value_format(1)}, 128},
                          {112, 96, {per_token, {}}, 64},
                          {192, 128, {per_channel, per_token}, 64},
                          {256, 256, {key_format(8), value_format(6)}, 32},
                          {576, 512, {key_format(4), value_format(4)}, 32},
                          {64, 64, {{}, per_channel}, 64},
                          {48, 80, {{}, {}}, 32}}) {
    DeviceProgram program({.shape = LayerShape{1, one.key_dim, one.value_dim},
                           .recipe = one.recipe,
                           .page_tokens = one.page_tokens,
                           .recent_tokens = 0,
                           .sequences = 1},
                          5);
    program.append({0}, {2 * one.page_tokens + 5}, emulate_pack);
    program.append({0}, {one.page_tokens}, emulate_pack);
    if (HasFailure()) return;
  }
}

TEST(Pack, Latents) {
  const Format centroids{1, Granularity::PerChannel, 64, RangeRule::Centroids};
  for (const Format& format : {key_format(8), centroids, Format{}}) {
    DeviceProgram program({.shape = LayerShape::latent(96, 32),
                           .recipe = {format, in_keys},
                           .page_tokens = 64,
                           .recent_tokens = 30},
                          16);
    program.append({1, 0}, {300, 70}, emulate_pack);
    program.append({0, 1}, {100, 1}, emulate_pack);
    if (HasFailure()) return;
  }
}

TEST(Pack, SlotsBelowZeroAreNobody) {
  DeviceProgram program({.shape = LayerShape{2, 32, 32},
                         .recipe = {key_format(4), value_format(4)},
                         .page_tokens = 32,
                         .recent_tokens = 40},
                        10);
  program.append({-1, 1, -7, 0}, {50, 100, 1, 40}, emulate_pack);
  program.append({0, 1, -1}, {77, 77, 77}, emulate_even_pack, {LaunchOrder::Backward});
  program.append({-1, -1}, {50, 70}, emulate_pack);
  EXPECT_EQ(program.device().record().fault, cuda::DeviceFault::None);
}

TEST(PackHostile, RowsThatCannotBeMeantChangeNothing) { expect_bad_rows_are_refused(emulate_pack); }

TEST(PackUnits, EachIsFoundByItsSequence) {
  Random random(10);
  for (const int count : {1, 2, 3, 32, 33, 34, 1057, 1058, 3000}) {
    std::vector<std::int32_t> indptr{random.below(200)};  // rows before it belong to no sequence
    for (int i = 0; i < count; ++i)
      indptr.push_back(indptr.back() +
                       (random.chance(3) ? 0 : random.below(random.chance(20) ? 500 : 40)));
    cuda::AppendArguments arguments{};
    arguments.layer.kv_heads = 1;
    arguments.layer.page_tokens = 64;
    arguments.batch.count = count;
    arguments.keys.tokens = indptr.back();
    arguments.rows = {indptr.data(), 0};
    const cuda::detail::PackUnits units(arguments);
    std::int32_t next = indptr[0] / 64;
    std::vector<int> owners(static_cast<std::size_t>(next), 0);
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(units.first(i), next);
      next = units.first(i + 1);
      ASSERT_GE(next - units.first(i), 1 + arguments.rows.count(i) / 64);
      owners.resize(static_cast<std::size_t>(next), i);
    }
    EXPECT_EQ(next, cuda::pack_blocks(arguments));
    emulate(next, 32, 0, [&](EmulatedThreads& threads) {
      const int found = units.find(threads, count, threads.block());
      EXPECT_EQ(found, owners[static_cast<std::size_t>(threads.block())]) << "of " << count;
    });
    if (HasFailure()) return;
  }
}

TEST(PackUnits, CanBeMoreThanALaunchTakes) {
  cuda::AppendArguments arguments{};
  arguments.layer.kv_heads = 128;
  arguments.layer.page_tokens = 32;
  arguments.batch.count = 3;
  arguments.keys.tokens = std::int64_t{1} << 30;
  EXPECT_EQ(cuda::pack_blocks(arguments), (std::int64_t{1} << 32) + 3 * 128);
}

TEST(PackUnits, ShareOutTheTail) {
  cuda::LayerView layer{};
  layer.page_tokens = 32;
  layer.sink_tokens = 4;
  layer.ring_blocks = 5;
  // The blocks that a unit takes; the tail starts at position 4.
  const auto taken = [&](std::int64_t length, std::int64_t tokens, std::int32_t seals, int units,
                         int unit) {
    cuda::AppendPlan plan{};
    plan.length = length;
    plan.tail_start = 4;
    plan.tokens = tokens;
    plan.seals = seals;
    const cuda::detail::TailBlocks pages = cuda::detail::new_pages(plan, 32);
    std::vector<int> blocks;
    const cuda::detail::TailShare tail(plan, layer, pages, unit, units);
    for (std::int32_t index = tail.first(); tail.has(index); index = tail.next(index))
      blocks.push_back(index);
    return blocks;
  };
  using Blocks = std::vector<int>;
  // 100 tokens in the tail and 400 more: 0 to 3 are sealed, 4 to 11 become pages, 12 to 15 stay.
  EXPECT_EQ(taken(104, 400, 12, 13, 0), (Blocks{0, 15}));
  EXPECT_EQ(taken(104, 400, 12, 13, 1), (Blocks{1}));
  EXPECT_EQ(taken(104, 400, 12, 13, 2), (Blocks{2, 12}));
  EXPECT_EQ(taken(104, 400, 12, 13, 3), (Blocks{3, 13}));
  EXPECT_EQ(taken(104, 400, 12, 13, 4), (Blocks{14}));
  EXPECT_EQ(taken(104, 400, 12, 13, 5), (Blocks{}));
  EXPECT_EQ(taken(104, 400, 12, 4, 0), (Blocks{0, 1, 2, 3, 12, 13, 14, 15}));
  EXPECT_EQ(taken(104, 400, 12, 4, 1), (Blocks{}));
  // An empty sequence starts with its sinks (-1).
  EXPECT_EQ(taken(0, 200, 3, 7, 0), (Blocks{-1, 5}));
  EXPECT_EQ(taken(0, 200, 3, 7, 1), (Blocks{6}));
  EXPECT_EQ(taken(0, 200, 3, 7, 3), (Blocks{3}));
  EXPECT_EQ(taken(0, 3, 0, 1, 0), (Blocks{-1}));
}

/// Records the cache lines that it is told to prefetch.
struct PrefetchingThread {
  std::set<std::uintptr_t>* lines;
  [[nodiscard]] int thread() const { return 0; }
  [[nodiscard]] int thread_count() const { return 1; }
  void prefetch(const std::byte* from) const {
    lines->insert(reinterpret_cast<std::uintptr_t>(from) / 128);
  }
};

TEST(Pack, BringsTheRowsOfAPageCloser) {
  for (const ElementType type : {ElementType::F16, ElementType::F32}) {
    cuda::AppendArguments arguments{};
    arguments.layer.page_tokens = 32;
    arguments.layer.key_dim = 128;
    arguments.layer.value_dim = 48;
    const std::vector<float> memory(200000);
    for (TensorView* const rows : {&arguments.keys, &arguments.values}) {
      const bool keys = rows == &arguments.keys;
      rows->data = memory.data() + (keys ? 1 : 100001);
      rows->type = type;
      rows->token_stride = keys ? 1024 : 40;
      rows->head_stride = keys ? 130 : 8000;
    }
    std::set<std::uintptr_t> lines;
    cuda::detail::prefetch_rows(PrefetchingThread{&lines}, arguments, 7, 2);
    std::set<std::uintptr_t> expected;
    for (const TensorView* const rows : {&arguments.keys, &arguments.values}) {
      const int dim = rows == &arguments.keys ? 128 : 48;
      const auto size = static_cast<std::int64_t>(element_bytes(type));
      for (int token = 7; token < 39; ++token)
        for (int channel = 0; channel < dim; ++channel)
          expected.insert(
              reinterpret_cast<std::uintptr_t>(
                  static_cast<const std::byte*>(rows->data) +
                  (token * rows->token_stride + 2 * rows->head_stride + channel) * size) /
              128);
    }
    EXPECT_EQ(lines, expected);
  }
}

}  // namespace
}  // namespace kvtilt::test
