// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/prefill_block.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/device_prefill.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::ChannelValueTraits;
using cuda::GenericTraits;
using cuda::HalfTraits;
using cuda::PageTraits;
using cuda::TokenKeyTraits;

template <class Pages>
void expect_chunks_close(const Recipe& recipe, int page_tokens = 64) {
  Random random(static_cast<std::uint64_t>(Pages::key_dim + page_tokens));
  const LayerShape shape{2, Pages::key_dim, Pages::value_dim, 0};
  const DeviceSequences sequences(random, shape, recipe, {230, 0, 97}, page_tokens);
  const Chunks chunks(random, shape, {37, 50, 1}, 3);
  const Output output = emulated_prefill<Pages>(sequences.device(), chunks, {}, {});
  EXPECT_TRUE(is_close(sequences.views, chunks, {}, output)) << to_string(recipe);
}

TEST(PrefillBlock, KnownWidthsAreCloseToFloat64) {
  expect_chunks_close<PageTraits<4, 2, 64>>(presets::k4v2);
  expect_chunks_close<PageTraits<8, 4, 64>>(presets::k8v4);
  expect_chunks_close<PageTraits<2, 8, 64>>(presets::per_channel_keys(2, 8));
  expect_chunks_close<PageTraits<1, 1, 64>>(presets::per_channel_keys(1, 1));
  expect_chunks_close<PageTraits<3, 2, 64>>(presets::k3v2);
  expect_chunks_close<PageTraits<5, 7, 64>>(presets::per_channel_keys(5, 7));
  expect_chunks_close<HalfTraits<64>>(presets::k16v16);
}

TEST(PrefillBlock, KeysPerTokenAndValuesPerChannelAreCloseToFloat64) {
  expect_chunks_close<TokenKeyTraits<8, 8, 64>>(parse_recipe("k8tv8").value());
  expect_chunks_close<ChannelValueTraits<4, 2, 64>>(parse_recipe("k4v2c").value());
  // Groups of three tiles, while tiles are decoded four at a time.
  using Odd = PageTraits<4, 4, 64, 192, 64, 64, 48>;
  static_assert(!cuda::decodes_known_pages(Odd{}));
  expect_chunks_close<Odd>(parse_recipe("k4v4:g64,48").value());
}

TEST(PrefillBlock, AnyRecipeIsCloseToFloat64) {
  expect_chunks_close<GenericTraits<64>>(presets::k4v2);
  expect_chunks_close<GenericTraits<64>>(presets::k16v16);
  expect_chunks_close<GenericTraits<64>>(parse_recipe("k5tv7c:g32,32").value());
}

TEST(PrefillBlock, EveryShapeOfPagesIsCloseToFloat64) {
  expect_chunks_close<PageTraits<4, 2, 128>>(presets::k4v2);
  expect_chunks_close<GenericTraits<96>>(presets::k4v2);
  expect_chunks_close<PageTraits<4, 2, 96>>(presets::k4v2);
  expect_chunks_close<PageTraits<4, 2, 192, 128>>(presets::k4v2);
  expect_chunks_close<PageTraits<4, 2, 192>>(presets::k4v2);
  expect_chunks_close<HalfTraits<96>>(presets::k16v16);
  expect_chunks_close<PageTraits<4, 2, 64, 256>>(presets::k4v2);
  expect_chunks_close<PageTraits<4, 2, 64, 64, 32>>(presets::k4v2, 32);
  expect_chunks_close<PageTraits<4, 4, 64, 64, 64, 32, 32>>(presets::kivi4);
  expect_chunks_close<HalfTraits<64, 64, 128>>(presets::k16v16, 128);
}

TEST(PrefillBlock, RowsFillTilesAndGoBeyondThem) {
  Random random(5);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {150, 0, 90});
  const DeviceLayer device = sequences.device();
  for (const int gqa_ratio : {1, 7, 8, 24})
    for (const std::vector<int>& lengths :
         {std::vector<int>{1, 1, 1}, {0, 75, 3}, {16, 17, 31}, {0, 0, 0}}) {
      const Chunks chunks(random, shape, lengths, gqa_ratio);
      const Output output = emulated_prefill<PageTraits<4, 2, 64>>(device, chunks, {}, {});
      EXPECT_TRUE(is_close(sequences.views, chunks, {}, output)) << gqa_ratio;
    }
}

TEST(PrefillBlock, SplitAndOrderOfBlocksChangeNothingButRounding) {
  Random random(6);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {500, 0, 40});
  const DeviceLayer device = sequences.device();
  const Chunks chunks(random, shape, {30, 70, 9}, 4);
  for (const int blocks : {2, 9, 40})
    for (const int warps : {1, 4}) {
      const Output output = emulated_prefill<PageTraits<4, 2, 64>>(
          device, chunks, {}, {}, {blocks, warps, 2, {LaunchOrder::Forward}});
      EXPECT_TRUE(is_close(sequences.views, chunks, {}, output)) << blocks << " " << warps;
      const Output backward = emulated_prefill<PageTraits<4, 2, 64>>(
          device, chunks, {}, {}, {blocks, warps, 2, {LaunchOrder::Backward}});
      EXPECT_EQ(output.out.data, backward.out.data);
      EXPECT_EQ(output.lse, backward.lse);
    }
}

template <class Pages>
void expect_copies_change_nothing(const Recipe& recipe) {
  static_assert(cuda::copied_page_bytes<Pages>() > 0);
  Random random(8);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, recipe, {500, 70, 300, 0});
  const DeviceLayer device = sequences.device();
  const Chunks chunks(random, shape, {30, 70, 9, 20}, 4);
  for (const int blocks : {1, 5})
    for (const int warps : {1, 3, 4}) {
      const EmulatedLaunch launch{blocks, warps, 2, {LaunchOrder::Shuffled, 3}};
      const Output copied = emulated_prefill<Pages>(device, chunks, {}, {}, launch, true);
      const Output read = emulated_prefill<Pages>(device, chunks, {}, {}, launch, false);
      EXPECT_EQ(copied.out.data, read.out.data) << to_string(recipe) << ", " << warps << " warps";
      EXPECT_EQ(copied.lse, read.lse);
    }
}

TEST(PrefillBlock, CopiedPagesAreThoseThatAreReadWhereTheyLie) {
  expect_copies_change_nothing<PageTraits<4, 2, 64>>(presets::k4v2);
  expect_copies_change_nothing<TokenKeyTraits<8, 8, 64>>(parse_recipe("k8tv8").value());
  static_assert(cuda::copied_page_bytes<HalfTraits<64>>() == 0);
  static_assert(cuda::copied_page_bytes<GenericTraits<64>>() == 0);
  static_assert(cuda::copied_page_bytes<PageTraits<4, 2, 64, 64, 128>>() == 0, "two units");
}

TEST(PrefillBlock, TwoBlocksWithCopiedPagesFitLargeDevices) {
  using Pages = PageTraits<4, 2, 128>;
  const cuda::PrefillShared shared =
      cuda::PrefillShared::of<cuda::PrefillTraits<Pages>>(4, 256, true);
  EXPECT_LE(shared.bytes, (228u / 2 - 1) * 1024);
  EXPECT_EQ(shared.page % 16, 0u) << "bulk copies";
  EXPECT_GE(shared.tiles, shared.page + Pages::unit_bytes);
  EXPECT_EQ(shared.barrier % 8, 0u);
}

TEST(PrefillBlock, FourWarpsFitSmallDevices) {
  EXPECT_LE(
      (cuda::PrefillShared::of<cuda::PrefillTraits<PageTraits<4, 2, 128>>>(4, 256, false).bytes),
      99u * 1024);
}

/// Launches, expects that nothing is written, and returns the recorded error.
cuda::DeviceRecord refused(const DeviceSequences& sequences, const Chunks& chunks) {
  DeviceLayer device = sequences.device();
  cuda::DeviceRecords records{};
  device.set_records(&records);
  const Output output = emulated_prefill<PageTraits<4, 2, 64>>(device, chunks, {}, {});
  for (const float x : output.out.data) EXPECT_EQ(x, 77.0f);
  EXPECT_EQ(records.refused.fault, cuda::DeviceFault::BadAttendRows);
  return records.refused;
}

TEST(PrefillBlock, MoreRowsThanTheHostWasToldOfWriteNothing) {
  Random random(9);
  const LayerShape shape{1, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {70});
  Chunks chunks(random, shape, {100}, 1);
  chunks.indptr.back() = 1000;
  EXPECT_EQ(refused(sequences, chunks).token, 1000);
}

TEST(PrefillBlock, RowsThatDoNotAscendWriteNothing) {
  Random random(10);
  const LayerShape shape{1, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {70, 30});
  for (const std::vector<std::int32_t>& indptr :
       {std::vector<std::int32_t>{0, 5000, 10}, {-10, 40, 100}, {0, 60, 50}, {0, -1, 100}}) {
    Chunks chunks(random, shape, {50, 50}, 1);
    chunks.indptr = indptr;
    const cuda::DeviceRecord record = refused(sequences, chunks);
    EXPECT_EQ(record.count, 1u);
    const int wrong = indptr[0] < 0 || indptr[1] < 0 || indptr[1] > 100 ? 0 : 1;
    EXPECT_EQ(record.sequence, wrong);
    EXPECT_EQ(record.token, indptr[static_cast<std::size_t>(wrong) + 1]);
  }
}

template <class Pages>
void expect_prefill_ignores_absent_slots(const Recipe& recipe) {
  Random random(11);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, recipe, {230});
  const Chunks chunks(random, shape, {37}, 3);
  const DeviceLayer device = sequences.device();
  const cuda::LayerView& layer = device.layer();
  // Makes the last page one that an engine has only partly filled.
  cuda::SequenceState& state = layer.states[0];
  cuda::PageSlot& last = layer.table(0)[state.page_end - 1];
  last.tokens = 37;
  state.length = state.tail_start = last.first_position + last.tokens;
  const Output clean = emulated_prefill<Pages>(device, chunks, {}, {});
  device.poison_absent(PageKind::Sealed, last.page, last.tokens);
  const Output poisoned = emulated_prefill<Pages>(device, chunks, {}, {});
  EXPECT_EQ(clean.out.data, poisoned.out.data) << to_string(recipe);
  EXPECT_EQ(clean.lse, poisoned.lse);
}

TEST(PrefillBlock, WhatAbsentSlotsOfSealedPagesHoldDoesNotMatter) {
  expect_prefill_ignores_absent_slots<PageTraits<4, 2, 64>>(presets::k4v2);
  expect_prefill_ignores_absent_slots<TokenKeyTraits<8, 8, 64>>(parse_recipe("k8tv8").value());
  expect_prefill_ignores_absent_slots<GenericTraits<64>>(presets::k4v2);
  expect_prefill_ignores_absent_slots<HalfTraits<64>>(presets::k16v16);
}

TEST(PrefillBlock, RowsThatSeeNothingAreEmpty) {
  Random random(12);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {230, 5});
  const Chunks chunks(random, shape, {37, 20}, 3);
  AttendOptions before;
  before.end_position = 0;
  AttendOptions behind;
  behind.first_position = 1000;
  AttendOptions some;  // seen only by the first rows of sequence 1
  some.first_position = 12;
  some.end_position = 14;
  for (const AttendOptions& options : {before, behind, some}) {
    const Output output =
        emulated_prefill<PageTraits<4, 2, 64>>(sequences.device(), chunks, options, {});
    EXPECT_TRUE(is_close(sequences.views, chunks, options, output));
  }
}

template <class Pages>
void expect_own_sinks_seen(const Recipe& recipe) {
  Random random(13);
  for (const int window : {1, 24, 69}) {
    LayerShape shape{2, 64, 64, window};
    shape.keep_sinks = true;
    const DeviceSequences sequences(random, shape, recipe, {0, 3, 39, 40, 150}, 64, 20, 40);
    const Chunks chunks(random, shape, {90, 100, 70, 50, 10}, 3);
    for (const int blocks : {1, 7}) {
      const Output output =
          emulated_prefill<Pages>(sequences.device(), chunks, {}, {}, {blocks, 1, 2});
      EXPECT_TRUE(is_close(sequences.views, chunks, {}, output))
          << to_string(recipe) << ", window " << window;
    }
  }
}

TEST(PrefillBlock, SinksThatAChunkBringsAreSeenBeyondItsWindow) {
  expect_own_sinks_seen<PageTraits<4, 2, 64>>(presets::k4v2);
  expect_own_sinks_seen<GenericTraits<64>>(presets::k4v2);
  expect_own_sinks_seen<HalfTraits<64>>(presets::k16v16);
}

TEST(PrefillBlockRandom, OptionsMeanWhatTheyMeanOnTheCpu) {
  Random random(8);
  for (int round = 0; round < 24; ++round) {
    LayerShape shape{2, 64, 64, random.chance(2) ? random.between(20, 200) : 0};
    shape.keep_sinks = random.chance(2);
    std::vector<std::int64_t> lengths;
    std::vector<int> tokens;
    for (int count = random.chance(3) ? 2 : 1; count > 0; --count) {
      lengths.push_back(random.chance(3) ? random.below(20) : random.between(0, 300));
      tokens.push_back(random.between(1, 90));
    }
    const DeviceSequences sequences(random, shape, presets::k4v2, lengths, 64, 20,
                                    random.chance(2) ? 4 : random.below(40));
    const Chunks chunks(random, shape, tokens, random.between(1, 4));
    const RandomOptions asked(random, shape, chunks.queries.rows());
    const AttendOptions& options = asked.options;
    const Output output = emulated_prefill<PageTraits<4, 2, 64>>(
        sequences.device(), chunks, options, {options.tree_mask.begin(), options.tree_mask.end()},
        {random.between(1, 6),
         random.between(1, 4),
         2,
         {LaunchOrder::Shuffled, static_cast<std::uint32_t>(random.below(1000))}});
    // Where the largest weight meets a value near zero, the other weights are subnormal: a wider
    // tolerance.
    EXPECT_TRUE(is_close(sequences.views, chunks, options, output, 2e-3, 1e-2))
        << "round " << round;
  }
}

}  // namespace
}  // namespace kvtilt::test
