// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/device_attention.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::ChannelValueTraits;
using cuda::GenericTraits;
using cuda::HalfTraits;
using cuda::PageTraits;
using cuda::TokenKeyTraits;

template <class Traits>
void expect_close(const Recipe& recipe, int page_tokens = 64) {
  Random random(Traits::key_bits * 100 + Traits::value_bits);
  const LayerShape shape{2, Traits::key_dim, Traits::value_dim, 0};
  const DeviceSequences sequences(random, shape, recipe, {300, 3, 170}, page_tokens);
  const Rows<float> queries = random_queries(random, shape, 3, 4);
  const Output output = emulated_attend<Traits>(sequences.device(), queries, {});
  EXPECT_TRUE(is_close(sequences.views, queries, {}, output));
}

TEST(AttendBlock, EveryWidthOfCodesIsCloseToFloat64) {
  expect_close<PageTraits<4, 2, 64>>(presets::k4v2);
  expect_close<PageTraits<4, 4, 64>>(presets::k4v4);
  expect_close<PageTraits<8, 8, 64>>(presets::k8v8);
  expect_close<PageTraits<8, 4, 64>>(presets::k8v4);
  expect_close<PageTraits<2, 2, 64>>(presets::k2v2);
  expect_close<PageTraits<2, 8, 64>>(presets::per_channel_keys(2, 8));
  expect_close<PageTraits<1, 1, 64>>(presets::per_channel_keys(1, 1));
  expect_close<PageTraits<3, 7, 64>>(presets::per_channel_keys(3, 7));
  expect_close<PageTraits<5, 6, 64>>(presets::per_channel_keys(5, 6));
  expect_close<PageTraits<6, 5, 64>>(presets::per_channel_keys(6, 5));
  expect_close<PageTraits<7, 3, 64>>(presets::per_channel_keys(7, 3));
  expect_close<HalfTraits<64>>(presets::k16v16);
}

TEST(AttendBlock, EveryShapeOfPagesIsCloseToFloat64) {
  expect_close<PageTraits<4, 2, 128>>(presets::k4v2);
  expect_close<PageTraits<4, 2, 96>>(presets::k4v2);
  expect_close<PageTraits<3, 2, 128>>(presets::k3v2);
  expect_close<PageTraits<4, 2, 192, 128>>(presets::k4v2);
  expect_close<PageTraits<4, 2, 192>>(presets::k4v2);
  expect_close<PageTraits<4, 2, 256>>(presets::k4v2);
  expect_close<PageTraits<4, 2, 64, 64, 32>>(presets::k4v2, 32);
  expect_close<PageTraits<4, 2, 64, 64, 128>>(presets::k4v2, 128);
  expect_close<HalfTraits<64, 128, 32>>(presets::k16v16, 32);
  expect_close<PageTraits<4, 4, 64, 64, 64, 32, 32>>(presets::kivi4);
  expect_close<PageTraits<2, 2, 128, 128, 64, 32, 32>>(presets::kivi2);
}

TEST(AttendBlock, KeysPerTokenAndValuesPerChannelAreCloseToFloat64) {
  const auto recipe = [](const char* name) { return parse_recipe(name).value(); };
  expect_close<TokenKeyTraits<8, 8, 64>>(recipe("k8tv8"));
  expect_close<TokenKeyTraits<4, 4, 128, 128, 64, 32, 32>>(recipe("k4tv4:g32,32"));
  expect_close<TokenKeyTraits<3, 2, 64, 64, 128>>(recipe("k3tv2"), 128);
  expect_close<ChannelValueTraits<4, 2, 128>>(recipe("k4v2c"));
  expect_close<ChannelValueTraits<2, 2, 64, 64, 64, 32, 32>>(recipe("k2v2c:g32,32"));
  expect_close<ChannelValueTraits<4, 2, 64, 64, 32>>(recipe("k4v2c"), 32);
  expect_close<ChannelValueTraits<5, 3, 64>>(recipe("k5v3c"));
  expect_close<
      PageTraits<4, 4, 64, 64, 64, 64, 64, Granularity::PerToken, Granularity::PerChannel>>(
      recipe("k4tv4c"));
}

template <class Traits>
void expect_absent_slots_ignored(const char* name) {
  Random random(9);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, parse_recipe(name).value(), {230});
  const Rows<float> queries = random_queries(random, shape, 1, 4);
  for (const int held : {1, 30, 37, 63}) {
    // Makes the last page one that an engine has only partly filled.
    const DeviceLayer device = sequences.device();
    cuda::SequenceState& state = device.layer().states[0];
    cuda::PageSlot& last = device.layer().table(0)[state.page_end - 1];
    last.tokens = held;
    state.length = state.tail_start = last.first_position + held;
    const Output clean = emulated_attend<Traits>(device, queries, {});
    device.poison_absent(PageKind::Sealed, last.page, held);
    const Output poisoned = emulated_attend<Traits>(device, queries, {});
    EXPECT_EQ(clean.out.data, poisoned.out.data) << name << ", " << held;
    EXPECT_EQ(clean.lse, poisoned.lse);
  }
}

TEST(AttendBlock, WhatSlotsWithoutATokenHoldDoesNotMatter) {
  expect_absent_slots_ignored<PageTraits<4, 2, 64>>("k4v2");
  expect_absent_slots_ignored<TokenKeyTraits<8, 8, 64>>("k8tv8");
  expect_absent_slots_ignored<ChannelValueTraits<4, 2, 64, 64, 64, 32, 16>>("k4v2c:g32,16");
  expect_absent_slots_ignored<GenericTraits<64>>("k4v2");
  expect_absent_slots_ignored<HalfTraits<64>>("k16v16");
}

TEST(AttendBlock, RowsFillTilesAndGoBeyondThem) {
  Random random(5);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {200, 90});
  const DeviceLayer device = sequences.device();
  for (const int gqa_ratio : {1, 3, 8, 12})
    for (const int tokens : {1, 5}) {
      const Rows<float> queries = random_queries(random, shape, 2 * tokens, gqa_ratio);
      const Output output = emulated_attend<PageTraits<4, 2, 64>>(device, queries, {});
      EXPECT_TRUE(is_close(sequences.views, queries, {}, output)) << gqa_ratio << " x " << tokens;
    }
}

TEST(AttendBlock, SplitAndOrderOfBlocksChangeNothingButRounding) {
  Random random(6);
  const LayerShape shape{1, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {700, 0, 40, 1});
  const DeviceLayer device = sequences.device();
  const Rows<float> queries = random_queries(random, shape, 4, 4);
  for (const int blocks : {1, 2, 7, 40})
    for (const int warps : {1, 4})
      for (const int stages : {2, 3}) {
        const Output output = emulated_attend<PageTraits<4, 2, 64>>(
            device, queries, {}, {blocks, warps, stages, {LaunchOrder::Forward}});
        EXPECT_TRUE(is_close(sequences.views, queries, {}, output)) << blocks << " " << warps;
        const Output backward = emulated_attend<PageTraits<4, 2, 64>>(
            device, queries, {}, {blocks, warps, stages, {LaunchOrder::Backward}});
        EXPECT_EQ(output.out.data, backward.out.data);
        EXPECT_EQ(output.lse, backward.lse);
      }
}

TEST(AttendBlockRandom, OptionsMeanWhatTheyMeanOnTheCpu) {
  Random random(7);
  for (int round = 0; round < 40; ++round) {
    LayerShape shape{2, 64, 64, random.chance(3) ? random.between(50, 300) : 0};
    shape.keep_sinks = random.chance(2);
    const Recipe recipes[] = {presets::k4v2, presets::k8v4, parse_recipe("k8tv4").value(),
                              parse_recipe("k4v4c").value()};
    const int kind = random.below(4);
    const DeviceSequences sequences(random, shape, recipes[kind], {random.between(70, 420)});
    const int tokens = random.between(1, 6);
    const Rows<float> queries = random_queries(random, shape, tokens, random.between(1, 4));
    const RandomOptions asked(random, shape, queries);
    const AttendOptions& options = asked.options;
    const DeviceLayer device = sequences.device();
    const EmulatedLaunch launch{
        random.between(1, 6),
        random.between(1, 3),
        2,
        {LaunchOrder::Shuffled, static_cast<std::uint32_t>(random.below(1000))}};
    const Output output =
        kind == 0   ? emulated_attend<PageTraits<4, 2, 64>>(device, queries, options, launch)
        : kind == 1 ? emulated_attend<PageTraits<8, 4, 64>>(device, queries, options, launch)
        : kind == 2
            ? emulated_attend<TokenKeyTraits<8, 4, 64>>(device, queries, options, launch)
            : emulated_attend<ChannelValueTraits<4, 4, 64>>(device, queries, options, launch);
    EXPECT_TRUE(is_close(sequences.views, queries, options, output, 2e-3, 0.0))
        << "round " << round;
  }
}

/// The 700 rows see more pages than the padding that an item has on the work line.
TEST(AttendBlock, AWindowOfManyRowsReachesFurtherBackThanOfOne) {
  Random random(15);
  const LayerShape shape{1, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {900, 900}, 32);
  const std::vector<std::int32_t> indptr = {0, 1, 701};
  const Rows<float> queries = random_queries(random, shape, 701, 1);
  AttendOptions options;
  options.window = 60;
  const Output output = emulated_attend<PageTraits<4, 2, 64, 64, 32>>(
      sequences.device(), queries, options, {2, 2, 2, {}, indptr});
  EXPECT_TRUE(is_close(sequences.views, queries, options, output, 2e-3, -1.0, indptr));
}

/// Drafts of different lengths: no rows, more rows than tokens, rows of no sequence.
TEST(AttendBlockRandom, SequencesAskWithAsManyRowsAsTheyHave) {
  Random random(13);
  for (int round = 0; round < 40; ++round) {
    LayerShape shape{random.between(1, 2), 64, 64, random.chance(3) ? random.between(50, 300) : 0};
    shape.keep_sinks = random.chance(2);
    const int count = random.between(1, 6);
    std::vector<std::int64_t> lengths;
    std::vector<std::int32_t> indptr = {random.below(3)};
    for (int i = 0; i < count; ++i) {
      lengths.push_back(random.chance(5) ? 0 : random.between(1, 420));
      indptr.push_back(indptr.back() + (random.chance(4) ? 0 : random.between(1, 9)));
    }
    const int generic = random.below(2);
    const DeviceSequences sequences(random, shape, presets::k4v2, lengths);
    const Rows<float> queries =
        random_queries(random, shape, indptr.back() + random.below(3), random.between(1, 4));
    RandomOptions asked(random, shape, queries);
    const AttendOptions& options = asked.options;
    const EmulatedLaunch launch{
        random.chance(2) ? random.between(1, 6) : random.between(20, 60),
        random.between(1, 3),
        2,
        {LaunchOrder::Shuffled, static_cast<std::uint32_t>(random.below(1000))},
        indptr};
    const DeviceLayer device = sequences.device();
    const Output output =
        generic != 0 ? emulated_attend<GenericTraits<64>>(device, queries, options, launch)
                     : emulated_attend<PageTraits<4, 2, 64>>(device, queries, options, launch);
    EXPECT_TRUE(is_close(sequences.views, queries, options, output, 2e-3, -1.0, indptr))
        << "round " << round;
    for (std::int64_t row = 0; row < queries.tokens; ++row) {
      if (row >= indptr[0] && row < indptr.back()) continue;
      for (int head = 0; head < queries.heads; ++head)
        for (int c = 0; c < 64; ++c) ASSERT_EQ(output.out.at(row, head, c), 7.0f);
    }
  }
}

TEST(AttendBlockHostile, RowsThatCannotBeMeantAreNotWritten) {
  Random random(14);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {200, 0, 0, 90});
  DeviceLayer device = sequences.device();
  cuda::DeviceRecords records{};
  const cuda::DeviceRecord& record = records.refused;
  device.set_records(&records);
  const Rows<float> queries = random_queries(random, shape, 9, 4);
  for (const std::vector<std::int32_t>& indptr : {std::vector<std::int32_t>{0, 5000, 2, 4, 9},
                                                  {-3, 2, 4, 4, 9},
                                                  {0, 4, 3, 5, 9},
                                                  {0, 2, 4, 5, 10}}) {
    const Output output =
        emulated_attend<PageTraits<4, 2, 64>>(device, queries, {}, {5, 2, 2, {}, indptr});
    for (const float x : output.out.data) ASSERT_EQ(x, 7.0f);
    EXPECT_EQ(record.fault, cuda::DeviceFault::BadAttendRows);
    EXPECT_EQ(record.count, 2u) << "once for each of two launches";
    records = {};
  }
}

TEST(AttendBlockHostile, QueriesThatSeeFreedTokensAreRecorded) {
  Random random(15);
  const LayerShape shape{2, 64, 64, 70};
  const DeviceSequences sequences(random, shape, presets::k4v2, {400, 60});
  DeviceLayer device = sequences.device();
  cuda::DeviceRecords records{};
  device.set_records(&records);
  const LayerView& view = sequences.views[0];
  ASSERT_GT(view.first_kept, 4);
  const std::int64_t kept = view.length - view.first_kept - shape.window + 1;  // rows it can serve
  for (const std::int64_t queries : {kept, kept + 1}) {
    const std::int32_t rows = static_cast<std::int32_t>(queries);
    static_cast<void>(
        emulated_attend<PageTraits<4, 2, 64>>(device, random_queries(random, shape, queries + 1, 4),
                                              {}, {5, 2, 2, {}, {0, rows, rows + 1}}));
    EXPECT_EQ(records.refused.count, queries > kept ? 2u : 0u) << "once for each of two launches";
  }
  EXPECT_EQ(records.refused.fault, cuda::DeviceFault::WindowFreed);
  EXPECT_EQ(records.refused.token, view.first_kept - 1);
  const Status status = to_status(records.refused, 64);
  EXPECT_NE(status.message().find("window has freed"), std::string::npos) << status.message();
}

TEST(AttendBlockHostile, UnsoundRowsAreNotTakenForQueriesThatSeeFreedTokens) {
  Random random(16);
  const LayerShape shape{2, 64, 64, 64};
  const DeviceSequences sequences(random, shape, presets::k4v2, {500, 500});
  DeviceLayer device = sequences.device();
  cuda::DeviceRecords records{};
  device.set_records(&records);
  static_cast<void>(emulated_attend<PageTraits<4, 2, 64>>(
      device, random_queries(random, shape, 2, 4), {}, {5, 2, 2, {}, {0, 400, 2}}));
  EXPECT_EQ(records.refused.fault, cuda::DeviceFault::BadAttendRows);
  EXPECT_EQ(records.refused.count, 2u) << "once for each of two launches";
}

/// Then the output is much smaller than the values whose rounding it contains.
TEST(AttendBlockProperty, ValuesThatCancelHaveTheErrorOfTheirOwnNorms) {
  Random random(9);
  const LayerShape shape{1, 64, 64, 0};
  CacheOptions options;
  options.recent_tokens = 20;
  KVCache cache = make_cache(shape, presets::k8v8, options);
  const SequenceId id = open_reserved(cache, 400);
  Rows<float> values = random_rows(random, 400, 1, 64);
  for (int token = 1; token < 400; token += 2)
    for (int c = 0; c < 64; ++c) values.at(token, 0, c) = -values.at(token - 1, 0, c);
  Rows<float> keys = random_rows(random, 400, 1, 64);
  for (int token = 1; token < 400; token += 2)
    for (int c = 0; c < 64; ++c)
      keys.at(token, 0, c) = keys.at(token - 1, 0, c) + 0.01f * keys.at(token, 0, c);
  KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  const std::vector<LayerView> views = {cache.view(id, 0).value()};
  const Rows<float> queries = random_queries(random, shape, 4, 4);
  const Output output =
      emulated_attend<PageTraits<8, 8, 64>>({views, {presets::k8v8}, options}, queries, {});
  EXPECT_FALSE(is_close(views, queries, {}, output)) << "they do not cancel";
  const LiveHead live(views[0], 0);
  for (int head = 0; head < 4; ++head)
    for (int t = 0; t < 4; ++t) {
      const OracleRow row =
          oracle_row({}, shape, {396 + t, 396, t, head}, &queries.at(t, head, 0), live.tokens);
      EXPECT_TRUE(is_close(row, &output.out.at(t, head, 0),
                           output.lse[static_cast<std::size_t>(4 * t + head)], 2e-3,
                           row.value_norm));
    }
}

/// Query rows are scaled into fp16's range first, so huge and tiny rows stay accurate.
TEST(AttendBlockProperty, QueriesBeyondFp16KeepTheirAccuracy) {
  Random random(10);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {200});
  for (const float spread : {1e-9f, 1e9f}) {
    const Rows<float> queries = random_queries(random, shape, 2, 4, spread);
    AttendOptions options;
    options.scale = 0.1f / spread;
    const Output output =
        emulated_attend<PageTraits<4, 2, 64>>(sequences.device(), queries, options);
    EXPECT_TRUE(is_close(sequences.views, queries, options, output)) << spread;
  }
}

/// The first two of four queries would have positions -2 and -1.
TEST(AttendBlockHostile, QueriesInFrontOfASequenceSeeNothing) {
  Random random(11);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {2, 100});
  const Rows<float> queries = random_queries(random, shape, 8, 4);
  const Output output = emulated_attend<PageTraits<4, 2, 64>>(sequences.device(), queries, {});
  EXPECT_TRUE(is_close(sequences.views, queries, {}, output));
  for (int t = 0; t < 4; ++t)
    for (int head = 0; head < 8; ++head) {
      EXPECT_EQ(is_minus_infinity(output.lse[static_cast<std::size_t>(8 * t + head)]), t < 2);
      for (int c = 0; c < 64 && t < 2; ++c) EXPECT_EQ(output.out.at(t, head, c), 0.0f);
    }
}

TEST(AttendBlockHostile, AQueryThatIsNotFiniteSpoilsItsRowAlone) {
  Random random(12);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k4v2, {300, 90});
  const DeviceLayer device = sequences.device();
  Rows<float> queries = random_queries(random, shape, 6, 4);
  const Output sound = emulated_attend<PageTraits<4, 2, 64>>(device, queries, {});
  queries.at(1, 3, 5) = std::nanf("");
  queries.at(4, 6, 60) = INFINITY;
  const Output output = emulated_attend<PageTraits<4, 2, 64>>(device, queries, {});
  for (int t = 0; t < 6; ++t)
    for (int head = 0; head < 8; ++head) {
      if ((t == 1 && head == 3) || (t == 4 && head == 6)) continue;
      const std::size_t row = static_cast<std::size_t>(8 * t + head);
      EXPECT_EQ(output.lse[row], sound.lse[row]) << t << " " << head;
      for (int c = 0; c < 64; ++c)
        EXPECT_EQ(output.out.at(t, head, c), sound.out.at(t, head, c)) << t << " " << head;
    }
}

TEST(AttendBlockProperty, MagnitudesFarFromOneKeepTheirAccuracy) {
  for (const float key : {1e-3f, 30.0f, 2000.0f})
    for (const float value : {1e-3f, 1.0f, 10000.0f}) {
      Random random(8);
      const LayerShape shape{1, 64, 64, 0};
      CacheOptions options;
      options.recent_tokens = 0;
      KVCache cache = make_cache(shape, presets::k4v2, options);
      const SequenceId id = open_reserved(cache, 400);
      const Rows<float> keys = random_rows(random, 400, 1, 64, key);
      const Rows<float> values = random_rows(random, 400, 1, 64, value);
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
      const std::vector<LayerView> views = {cache.view(id, 0).value()};
      const DeviceLayer device(views, {presets::k4v2}, options);
      const Rows<float> queries = random_queries(random, shape, 1, 4, 1.0f / key);
      const Output output = emulated_attend<PageTraits<4, 2, 64>>(device, queries, {});
      EXPECT_TRUE(is_close(views, queries, {}, output)) << key << " " << value;
    }
}

}  // namespace
}  // namespace kvtilt::test
