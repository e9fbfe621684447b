// SPDX-License-Identifier: MIT
#include <kvtilt/attention/attend.hpp>

#include "support/caches.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::attended;
using test::attends_within_bound;
using test::Output;
using test::Random;
using test::random_queries;
using test::random_rows;
using test::Rows;

struct Filling {
  float spread = 1.0f;
  float key_offset = 0.0f;
  float value_offset = 0.0f;
};

/// One layer of one sequence with random tokens.
struct FilledLayer {
  KVCache cache;
  SequenceId id;

  FilledLayer(const LayerShape& shape, const Recipe& recipe, const CacheOptions& options,
              std::int64_t tokens, Random& random, const Filling& filling = {})
      : cache(test::make_cache(shape, recipe, options)), id(test::open_reserved(cache, tokens)) {
    const Rows<float> keys = random_rows(random, tokens, shape.kv_heads, shape.key_dim,
                                         filling.spread, filling.key_offset);
    const Rows<float> values = random_rows(random, tokens, shape.kv_heads, shape.value_dim,
                                           filling.spread, filling.value_offset);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  }
  [[nodiscard]] LayerView view() const { return cache.view(id, 0).value(); }
};

CacheOptions options_for(Isa isa, int page = 64, int sinks = 4, int recent = 0) {
  CacheOptions options;
  options.isa = isa;
  options.page_tokens = page;
  options.sink_tokens = sinks;
  options.recent_tokens = recent;
  return options;
}

TEST(AttendProperty, KeepsTheBoundForEveryPreset) {
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k16v16", "k8v8", "k8v4", "k6v4", "k4v4", "k4v2", "k3v2", "k2v2",
                             "k4v8", "k2v4", "kivi2", "kivi4", "k1v1", "k5v7"}) {
      Random random(1);
      const LayerShape shape{2, 128, 128, 0};
      const FilledLayer layer(shape, parse_recipe(name).value(), options_for(isa, 64, 4, 32), 260,
                              random);
      EXPECT_TRUE(attends_within_bound(layer.view(), random_queries(random, shape, 3, 4)))
          << name << " on " << to_string(isa);
    }
}

TEST(AttendProperty, KeepsTheBoundForEveryWidthGranularityAndGroup) {
  for (const Isa isa : test::usable_isas())
    for (const int bits : test::storage_widths)
      for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken})
        for (const int group : {0, 16, 32}) {
          if (bits == half_bits && group != 0) continue;
          const Format format = bits == half_bits ? Format{} : key_format(bits, granularity, group);
          Random random(static_cast<std::uint64_t>(bits));
          const LayerShape shape{1, 72, 72, 0};
          for (const Recipe& recipe : {Recipe{format, {}}, Recipe{{}, format}}) {
            const FilledLayer layer(shape, recipe, options_for(isa), 210, random);
            EXPECT_TRUE(attends_within_bound(layer.view(), random_queries(random, shape, 2, 3)))
                << to_string(recipe) << " on " << to_string(isa);
          }
        }
}

TEST(AttendProperty, KeepsTheBoundForEveryHeadDimension) {
  constexpr int dims[][2] = {{8, 8},     {16, 24},   {64, 64},   {72, 72},   {80, 80},
                             {96, 96},   {112, 112}, {128, 128}, {136, 40},  {192, 128},
                             {192, 192}, {256, 256}, {576, 512}, {512, 576}, {576, 576}};
  for (const Isa isa : test::usable_isas())
    for (const auto& dim : dims)
      for (const char* name : {"k4v2", "k3tv5c", "k7tv7c:g16,16", "k16v16"}) {
        Random random(3);
        const LayerShape shape{2, dim[0], dim[1], 0};
        const FilledLayer layer(shape, parse_recipe(name).value(), options_for(isa, 32), 101,
                                random);
        EXPECT_TRUE(attends_within_bound(layer.view(), random_queries(random, shape, 2, 2)))
            << name << ", " << dim[0] << "/" << dim[1] << " on " << to_string(isa);
      }
}

TEST(AttendProperty, KeepsTheBoundForEveryGqaRatioAndQueryCount) {
  for (const Isa isa : test::usable_isas())
    for (const int gqa_ratio : {1, 2, 3, 4, 5, 7, 8, 16}) {
      Random random(4);
      const LayerShape shape{2, 64, 64, 0};
      const FilledLayer layer(shape, presets::k4v2, options_for(isa, 32), 150, random);
      for (const int queries : {1, 2, 3, 4, 5, 15, 16, 17, 33, 70})
        EXPECT_TRUE(
            attends_within_bound(layer.view(), random_queries(random, shape, queries, gqa_ratio)))
            << queries << " queries, ratio " << gqa_ratio << " on " << to_string(isa);
    }
}

TEST(AttendProperty, KeepsTheBoundAroundEveryBoundary) {
  for (const Isa isa : test::usable_isas())
    for (const int page : {32, 64, 128})
      for (const int sinks : {0, 4, 17})
        for (const int recent : {0, 1, 63, 64, 128}) {
          Random random(5);
          const LayerShape shape{1, 32, 32, 0};
          const int sealing = sinks + page + recent;
          for (const int length :
               {1, sinks - 1, sinks, sinks + 1, page - 1, page, sinks + page - 1, sinks + page,
                sinks + page + 1, sealing - 1, sealing, sealing + 1, sealing + page}) {
            if (length < 1) continue;
            const FilledLayer layer(shape, presets::k4v4, options_for(isa, page, sinks, recent),
                                    length, random);
            const int queries = std::min(length, 5);
            EXPECT_TRUE(
                attends_within_bound(layer.view(), random_queries(random, shape, queries, 2)))
                << "length " << length << ", page " << page << ", sinks " << sinks << ", recent "
                << recent << " on " << to_string(isa);
          }
        }
}

TEST(AttendProperty, KeepsTheBoundInsideAWindow) {
  for (const Isa isa : test::usable_isas())
    for (const int window : {1, 2, 3, 5, 31, 32, 33, 64, 100, 149, 150, 500})
      for (const char* name : {"k4v2", "k3tv5c", "k16v16"}) {
        Random random(6);
        const LayerShape shape{2, 40, 40, window};
        const FilledLayer layer(shape, parse_recipe(name).value(), options_for(isa, 32, 4, 32), 150,
                                random);
        EXPECT_TRUE(attends_within_bound(layer.view(), random_queries(random, shape, 20, 2)))
            << name << ", window " << window << " on " << to_string(isa);
      }
}

TEST(AttendProperty, KeepsTheBoundWithOffsetKeysAndLargeLogits) {
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k8v8", "k4v2", "k2tv2c", "k16v16"})
      for (const Filling& filling :
           {Filling{1.0f, 20.0f, 0.0f}, Filling{0.01f, 20.0f, -20.0f}, Filling{1.0f, 0.0f, 100.0f},
            Filling{300.0f, 0.0f, 0.0f}, Filling{0.001f, 0.0f, 0.0f}, Filling{1e-6f, 0.0f, 0.0f}})
        for (const float spread : {0.001f, 1.0f, 30.0f}) {
          Random random(7);
          const LayerShape shape{1, 128, 128, 0};
          const FilledLayer layer(shape, parse_recipe(name).value(), options_for(isa), 300, random,
                                  filling);
          EXPECT_TRUE(
              attends_within_bound(layer.view(), random_queries(random, shape, 2, 4, spread)))
              << name << ", values around " << filling.key_offset << " +- " << filling.spread
              << ", queries " << spread << " on " << to_string(isa);
        }
}

TEST(AttendProperty, KeepsTheBoundOverTwentyThousandTokens) {
  for (const Isa isa : test::usable_isas())
    for (const float spread : {0.0f, 0.01f, 5.0f})  // uniform, nearly uniform and peaked logits
      for (const float value_offset : {0.0f, 1.0f}) {
        Random random(8);
        const LayerShape shape{1, 32, 32, 0};
        const FilledLayer layer(shape, presets::k4v4, options_for(isa, 64, 4, 128), 20000, random,
                                {1.0f, 0.0f, value_offset});
        EXPECT_TRUE(attends_within_bound(layer.view(), random_queries(random, shape, 2, 2, spread)))
            << "queries " << spread << ", values around " << value_offset << " on "
            << to_string(isa);
      }
}

// Rounding errors drift when equal terms are added: adding the same page rounds the same way until
// the sum doubles. Summing pages in spans, and spans in double, bounds the drift. A million tokens.
TEST(AttendProperty, KeepsTheBoundWhereRoundingDrifts) {
  constexpr int page = 32;
  constexpr int pages = 32768;
  for (const Isa isa : test::usable_isas()) {
    Random random(15);
    const LayerShape shape{1, 8, 8, 0};
    KVCache cache = test::make_cache(shape, presets::k16v16, options_for(isa, page, 0, 0));
    const SequenceId id = test::open_reserved(cache, pages * page);
    const Rows<float> keys = random_rows(random, page, 1, 8, 0.3f);
    const Rows<float> values = random_rows(random, page, 1, 8, 0.1f, 1.0f);
    for (int i = 0; i < pages; ++i)
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    EXPECT_TRUE(
        attends_within_bound(cache.view(id, 0).value(), random_queries(random, shape, 1, 1)))
        << to_string(isa);
  }
}

// Equal products round in the same direction: the one case that needs a sum's worst-case bound.
TEST(AttendProperty, ConstantTensorsKeepTheBoundOfTheirDimension) {
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k16v16", "k8v8", "k4v2", "k8tv8c"})
      for (const int dim : {32, 128, 576}) {
        Random random(16);
        const LayerShape shape{1, dim, 8, 0};
        for (int round = 0; round < 20; ++round) {
          KVCache cache =
              test::make_cache(shape, parse_recipe(name).value(), options_for(isa, 32, 4, 0));
          const SequenceId id = test::open_reserved(cache, 40);
          Rows<float> keys(40, 1, dim);
          const Rows<float> values(40, 1, 8);
          Rows<float> queries(1, 1, dim);
          std::fill(keys.data.begin(), keys.data.end(), static_cast<float>(random.uniform(10, 30)));
          std::fill(queries.data.begin(), queries.data.end(),
                    static_cast<float>(random.uniform(10, 30)));
          KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
          const LayerView view = cache.view(id, 0).value();
          const double logit = static_cast<double>(queries.data[0]) *
                               static_cast<double>(to_float(to_f16(keys.data[0]))) *
                               std::sqrt(static_cast<double>(dim));
          const double lse = logit + std::log(40.0);
          EXPECT_NEAR(static_cast<double>(attended(view, queries).lse[0]), lse,
                      1e-5 + std::max(8.0, dim / 2.0) * 0x1p-24 * logit)
              << name << ", " << dim << " channels on " << to_string(isa);
        }
      }
}

// Scales and minima are applied apart from the codes, so an element that nearly cancels against the
// minimum of its group is rounded like that minimum. The element that widened the group may be
// invisible: here the query is 0 in its channel, or its token is outside the window or truncated.
TEST(AttendProperty, RoundsNoWorseThanTheGroupsAreWide) {
  enum class Hidden { Channel, Behind, Truncated };
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k8v8", "k8tv8c", "k4v4", "k4tv4c", "k2v2", "k1tv1c"})
      for (const Hidden hidden : {Hidden::Channel, Hidden::Behind, Hidden::Truncated}) {
        Random random(14);
        const LayerShape shape{1, 64, 64, hidden == Hidden::Behind ? 20 : 0};
        KVCache cache =
            test::make_cache(shape, parse_recipe(name).value(), options_for(isa, 64, 0, 0));
        const SequenceId id = test::open_reserved(cache, 64);
        Rows<float> keys = random_rows(random, 64, 1, 64);
        Rows<float> values = random_rows(random, 64, 1, 64);
        Rows<float> queries = random_queries(random, shape, 1, 8);
        for (int i = 0; i < 64; ++i) {
          const int token = hidden == Hidden::Channel ? i : hidden == Hidden::Behind ? 0 : 63;
          const int channel = hidden == Hidden::Channel ? 0 : i;
          keys.at(token, 0, channel) = -1000.0f;
          values.at(token, 0, channel) = 1000.0f;
        }
        if (hidden == Hidden::Channel)
          for (int head = 0; head < 8; ++head) queries.at(0, head, 0) = 0.0f;
        KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
        KVTILT_EXPECT_OK(cache.truncate(id, hidden == Hidden::Truncated ? 63 : 64));
        const LayerView view = cache.view(id, 0).value();
        EXPECT_TRUE(test::keeps_bound({test::stored_head(view, 0, test::Width::OfGroups)}, queries,
                                      view.length - 1, shape.window, 0.125,
                                      attended(view, queries)))
            << name << ", " << static_cast<int>(hidden) << " on " << to_string(isa);
      }
}

TEST(AttendRandom, KeepsTheBoundForAnything) {
  for (const Isa isa : test::usable_isas())
    for (std::uint64_t seed = 0; seed < 150; ++seed) {
      Random random(seed);
      const int page = test::pick(random, {32, 64, 128});
      const LayerShape shape{random.between(1, 3), 8 * random.between(1, 20),
                             8 * random.between(1, 20),
                             random.chance(3) ? random.between(1, 200) : 0};
      const Recipe recipe{test::random_format(random, shape.key_dim, page),
                          test::random_format(random, shape.value_dim, page)};
      const int length = random.between(1, 400);
      const FilledLayer layer(shape, recipe,
                              options_for(isa, page, random.between(0, 40), random.between(0, 150)),
                              length, random, {1.0f, random.chance(2) ? 0.0f : 20.0f, 0.0f});
      const int queries = std::min(length, random.between(1, 12));
      AttendOptions options = test::exact_options();
      if (random.chance(2)) options.scale = 0.05f;
      EXPECT_TRUE(attends_within_bound(
          layer.view(), random_queries(random, shape, queries, random.between(1, 6)), options))
          << "seed " << seed << ": " << to_string(recipe) << ", " << shape.key_dim << "/"
          << shape.value_dim << ", length " << length << ", page " << page << ", window "
          << shape.window << " on " << to_string(isa);
    }
}

TEST(AttendAgreement, InstructionSetsDifferByRoundingOnly) {
  for (const char* name : {"k1v1", "k2v2", "k3tv3c", "k4v2", "k5v5", "k6v6", "k7tv7c", "k8v8"}) {
    std::vector<Output> outputs;
    for (const Isa isa : test::usable_isas()) {
      Random random(9);
      const LayerShape shape{2, 72, 72, 0};
      const FilledLayer layer(shape, parse_recipe(name).value(), options_for(isa), 300, random);
      outputs.push_back(attended(layer.view(), random_queries(random, shape, 3, 2)));
      for (std::size_t i = 0; i < outputs[0].out.data.size(); ++i)
        EXPECT_NEAR(outputs[0].out.data[i], outputs.back().out.data[i], 1e-4) << name;
    }
  }
}

TEST(Attend, ReadsEveryStridedElementType) {
  Random random(10);
  const LayerShape shape{2, 64, 48, 0};
  const FilledLayer layer(shape, presets::k4v2, {}, 200, random);
  const Rows<BF16> bf16 = test::converted<BF16>(random_queries(random, shape, 5, 3), to_bf16);
  const Rows<float> plain = test::converted<float>(bf16, [](BF16 x) { return to_float(x); });
  const Rows<F16> f16 = test::converted<F16>(plain, to_f16);
  const Output expected = attended(layer.view(), plain);
  EXPECT_TRUE(test::keeps_bound(layer.view(), plain, {}, expected));

  std::vector<float> swapped(plain.data.size());  // [heads][tokens][dim], heads last to first
  for (int t = 0; t < 5; ++t)
    for (int h = 0; h < 6; ++h)
      for (int c = 0; c < 64; ++c)
        swapped[static_cast<std::size_t>(((5 - h) * 5 + t) * 64 + c)] = plain.at(t, h, c);
  const TensorView strided =
      TensorView(swapped.data() + 5 * 5 * 64, 5, 6, 64).with_strides(64, -5 * 64);

  std::vector<std::byte> workspace(attend_workspace_bytes(layer.view()));
  for (const TensorView& queries : {bf16.view(), f16.view(), strided}) {
    Output output(5, 6, 48);
    KVTILT_EXPECT_OK(
        attend(layer.view(), queries, output.view(), test::exact_options(), workspace));
    EXPECT_EQ(output.out.data, expected.out.data);
    EXPECT_EQ(output.lse, expected.lse);
  }
}

TEST(Attend, WritesStridedOutputsAndNothingElse) {
  Random random(11);
  const LayerShape shape{2, 32, 40, 0};
  const FilledLayer layer(shape, presets::k4v2, {}, 100, random);
  const Rows<float> queries = random_queries(random, shape, 3, 2);
  const Output expected = attended(layer.view(), queries);
  // [heads][tokens + 1][dim + 8], tokens last to first; the gaps between rows must stay 5.
  std::vector<float> data(4 * 4 * 48, 5.0f);
  const OutputView out = OutputView(data.data() + 2 * 48, 3, 4, 40).with_strides(-48, 4 * 48);
  std::vector<std::byte> workspace(attend_workspace_bytes(layer.view()));
  KVTILT_EXPECT_OK(attend(layer.view(), queries.view(), out, test::exact_options(), workspace));
  for (int h = 0; h < 4; ++h)
    for (int row = 0; row < 4; ++row)
      for (int c = 0; c < 48; ++c) {
        const bool written = row < 3 && c < 40;
        EXPECT_EQ(data[static_cast<std::size_t>((h * 4 + row) * 48 + c)],
                  written ? expected.out.at(2 - row, h, c) : 5.0f);
      }
}

TEST(Attend, AcceptsAWorkspaceOfAnyAlignmentAndContent) {
  Random random(12);
  const LayerShape shape{2, 72, 72, 0};
  const FilledLayer layer(shape, presets::k3v2, {}, 300, random);
  const Rows<float> queries = random_queries(random, shape, 4, 5);
  const Output expected = attended(layer.view(), queries);
  const std::size_t needed = attend_workspace_bytes(layer.view());
  for (std::size_t offset = 0; offset < 64; offset += 7) {
    std::vector<std::byte> memory(needed + 64 + 64, std::byte{0x7f});
    Output output(4, 10, 72);
    KVTILT_EXPECT_OK(attend(layer.view(), queries.view(), output.view(), test::exact_options(),
                            std::span(memory).subspan(offset, needed)));
    EXPECT_EQ(output.out.data, expected.out.data);
    EXPECT_EQ(output.lse, expected.lse);
    for (std::size_t i = 0; i < memory.size(); ++i)
      ASSERT_TRUE((i >= offset && i < offset + needed) || memory[i] == std::byte{0x7f})
          << "byte " << i << " is outside the workspace at " << offset;
  }
}

TEST(Attend, GivesTheSameOutputsWhicheverQueriesShareACall) {
  Random random(13);
  const LayerShape shape{1, 64, 64, 0};
  FilledLayer layer(shape, presets::k4v2, options_for(test::usable_isas().back()), 200, random);
  const Rows<float> queries = random_queries(random, shape, 21, 3);
  const Output together = attended(layer.view(), queries);
  for (int token = 20; token >= 0; --token) {
    Rows<float> one(1, 3, 64);
    std::copy_n(&queries.at(token, 0, 0), one.data.size(), one.data.data());
    const Output alone = attended(layer.view(), one);
    EXPECT_TRUE(test::attends_within_bound(layer.view(), one));
    // A page whose later tokens are masked is summed in the same lanes: equal up to rounding.
    for (std::size_t i = 0; i < alone.out.data.size(); ++i)
      EXPECT_NEAR(alone.out.data[i], (&together.out.at(token, 0, 0))[i], 1e-5);
    KVTILT_EXPECT_OK(layer.cache.truncate(layer.id, layer.view().length - 1));
  }
}

}  // namespace
}  // namespace kvtilt
