// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/generic_page.hpp>

#include "support/cached_layer.hpp"
#include "support/fp16_oracle.hpp"
#include "support/fragment_code.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::GenericTraits;

Recipe with_widths(int key, int value) { return presets::per_channel_keys(key, value); }

/// Compares every register of every tile with the scalar decoder; metadata have any sign and size.
template <Role role, int Dim>
void expect_values(Random& random, const Format& format, int page_tokens) {
  constexpr bool keys = role == Role::Keys;
  const Format resolved = resolve_format(format, "test", Dim, page_tokens).value();
  const Recipe recipe = keys ? Recipe{resolved, {}} : Recipe{{}, resolved};
  const HeadLayout head = head_layout(recipe, Dim, Dim, page_tokens, 0);
  const TensorLayout& tensor = keys ? head.key : head.value;
  const CodeMatrix matrix = tensor.matrix;
  std::vector<std::byte> page(head.bytes());
  for (std::byte& byte : page) byte = static_cast<std::byte>(random.below(256));
  for (int band = 0; band < tensor.bands(); ++band)
    for (int i = 0; i < 2 * tensor.pitch(); ++i)
      tensor.scales(page.data(), band)[i].bits = static_cast<std::uint16_t>(
          random.below(0x6c00) | (i >= tensor.pitch() ? random.below(2) << 15 : 0));
  const auto expected = [&](int outer, int inner) -> std::uint32_t {
    const std::byte* block = page.data();
    if (!resolved.quantized()) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, block + tensor.codes + cuda::half_offset(role, matrix, outer, inner), 2);
      return bits;
    }
    const int along = tensor.group_along_outer ? outer : inner;
    const int entry = tensor.group_along_outer ? inner : outer;
    const F16* scales = tensor.scales(block, along / resolved.group);
    const int code =
        read_fragment_code(role, reinterpret_cast<const std::uint8_t*>(block + tensor.codes),
                           matrix, resolved.bits, outer, inner);
    const double value = static_cast<double>(to_float(scales[tensor.pitch() + entry])) +
                         static_cast<double>(to_float(scales[entry])) * code;
    if (value >= static_cast<double>(f16_max)) return 0x7bff;
    const double units = value * 0x1p24;  // an integer
    const Wide whole = static_cast<Wide>(units);
    return nearest_fp16(absolute(whole), 1) | (whole < 0 ? 0x8000u : 0u);
  };
  constexpr int tiles = Dim / cuda::tile_extent;
  using Fragments = cuda::PageFragments<role, Dim, 4>;
  int wrong = 0;
  for (int token_tile = 0; token_tile < page_tokens / cuda::tile_extent; ++token_tile)
    for (int first = 0; first < tiles; first += Fragments::ahead)
      for (int lane = 0; lane < cuda::warp_lanes; ++lane) {
        cuda::Words words[Fragments::ahead];
        Fragments{&tensor, page.data(), token_tile}.load(lane, first, tiles, words);
        for (int i = 0; i < Fragments::ahead && first + i < tiles; ++i)
          for (int a = 0; a < 2; ++a)
            for (int b = 0; b < 4; ++b) {
              const int tile_outer = keys ? token_tile : first + i;
              const int tile_inner = keys ? first + i : token_tile;
              const int outer = tile_outer * cuda::tile_extent + lane / 4 * 2 + a;
              const int inner = tile_inner * cuda::tile_extent + lane % 4 * 4 + b;
              const cuda::FragmentPlace place = cuda::fragment_place(role, outer, inner);
              const std::uint32_t got = words[i].word[place.reg] >> (16 * place.half) & 0xffffu;
              const std::uint32_t want = expected(outer, inner);
              wrong += got != want && ((got | want) & 0x7fffu) != 0;
            }
      }
  EXPECT_EQ(wrong, 0) << (keys ? "keys " : "values ") << format.bits << " bits, "
                      << (format.granularity == Granularity::PerToken ? "per token" : "per channel")
                      << ", group " << format.group << ", " << Dim << " channels, pages of "
                      << page_tokens;
}

TEST(AttendGeneric, FragmentsAreValuesRoundedOnce) {
  Random random(9);
  const auto both = [&]<int Dim>() {
    for (const int page_tokens : {32, 64, 128})
      for (const int bits : storage_widths)
        for (const Format& format :
             {per_channel(bits), per_channel(bits, 16), per_token(bits), per_token(bits, 48)}) {
          const Format any = bits == half_bits ? Format{} : format;
          if (!cuda::supports_order({page_tokens, Dim}, bits)) continue;
          expect_values<Role::Keys, Dim>(random, any, page_tokens);
          expect_values<Role::Values, Dim>(random, any, page_tokens);
        }
  };
  both.template operator()<64>();
  both.template operator()<80>();
  both.template operator()<96>();
  both.template operator()<192>();
}

TEST(AttendGeneric, EveryPairOfWidthsIsCloseToFloat64) {
  Random random(1);
  for (const int key : storage_widths)
    for (const int value : storage_widths) {
      const CachedLayer layer(random, {1, 64, 64, 0}, {with_widths(key, value)}, {75});
      EXPECT_TRUE(is_close<GenericTraits<64>>(layer, random)) << key << " " << value;
    }
}

TEST(AttendGeneric, EveryWidthEitherWayAndInGroupsIsCloseToFloat64) {
  Random random(2);
  for (const int bits : storage_widths) {
    if (bits == half_bits) continue;
    for (const int page_tokens : {32, 64, 128}) {
      const std::int64_t length = page_tokens + 9;
      for (const Recipe& recipe : {Recipe{per_token(bits), per_channel(bits)},
                                   Recipe{per_token(bits, 16), per_token(bits, 48)},
                                   Recipe{per_channel(bits, 16), per_channel(bits, 32)}}) {
        const CachedLayer layer(random, {1, 64, 64, 0}, {recipe}, {length}, page_tokens);
        EXPECT_TRUE(is_close<GenericTraits<64>>(layer, random))
            << to_string(recipe) << " in pages of " << page_tokens;
      }
    }
  }
}

TEST(AttendGeneric, EveryHeadDimensionIsCloseToFloat64) {
  Random random(3);
  for (const Recipe& recipe :
       {with_widths(3, 2), with_widths(7, 5), Recipe{per_token(6), per_channel(1)}}) {
    for (const int page_tokens : {32, 64}) {
      const auto layer = [&](int key_dim, int value_dim) {
        return CachedLayer(random, {1, key_dim, value_dim, 0}, {recipe}, {page_tokens + 9},
                           page_tokens);
      };
      EXPECT_TRUE(is_close<GenericTraits<96>>(layer(96, 96), random)) << to_string(recipe);
      EXPECT_TRUE(is_close<GenericTraits<128>>(layer(128, 128), random)) << to_string(recipe);
      EXPECT_TRUE((is_close<GenericTraits<192, 128>>(layer(192, 128), random)))
          << to_string(recipe);
      EXPECT_TRUE(is_close<GenericTraits<256>>(layer(256, 256), random)) << to_string(recipe);
    }
  }
  // Planes whose last runs have two words or one.
  for (const int bits : {2, 4, 6}) {
    const CachedLayer layer(random, {1, 80, 112, 0}, {with_widths(bits, bits)}, {41});
    EXPECT_TRUE((is_close<GenericTraits<80, 112>>(layer, random))) << bits;
  }
}

TEST(AttendGeneric, EachHeadHasARecipeOfItsOwn) {
  Random random(4);
  const CachedLayer layer(random, {4, 64, 64, 0},
                          {with_widths(3, 2), with_widths(16, 4),
                           Recipe{per_token(8), per_channel(5, 32)}, with_widths(1, 16)},
                          {210, 0, 33, 3}, 64);
  for (const int blocks : {1, 5})
    for (const int warps : {1, 4})
      EXPECT_TRUE(is_close<GenericTraits<64>>(layer, random, {blocks, warps, 0, {}}));
}

// An engine attends to the tail itself; what the pages' part of a window is depends on its length.
TEST(AttendGeneric, QueriesComeBehindTheTailThatAnEngineKeeps) {
  Random random(15);
  const CachedLayer layer(random, {2, 64, 64, 0}, {with_widths(4, 2)}, {150, 75}, 32);
  const DeviceLayer device = layer.device();
  std::vector<std::int64_t> pages;
  for (const int slot : {1, 0}) {  // of the sequences in turn
    cuda::SequenceState& state = device.layer().states[slot];
    state.elsewhere = static_cast<std::int32_t>(state.length - state.tail_start);
    state.length = state.tail_start;
    pages.push_back(state.length);
    ASSERT_GT(state.elsewhere, 3);
  }
  const std::vector<float> slopes = {0.1f, -0.05f, 0.2f, 0.0f};
  for (const int window : {0, 60}) {
    AttendOptions options;
    options.window = window;
    options.alibi_slopes = slopes;
    const Rows<float> queries = random_queries(random, layer.shape, 6, 2);
    const Output output =
        emulated_attend<GenericTraits<64>>(device, queries, options, {3, 2, 0, {}});
    for (std::size_t i = 0; i < 2; ++i) {
      AttendOptions in_pages = options;
      in_pages.end_position = pages[i];
      const std::int64_t first = static_cast<std::int64_t>(3 * i);
      Rows<float> own(3, 4, 64);
      Output part(3, 4, 64);
      std::copy_n(&queries.at(first, 0, 0), own.data.size(), own.data.begin());
      std::copy_n(&output.out.at(first, 0, 0), part.out.data.size(), part.out.data.begin());
      std::copy_n(&output.lse[static_cast<std::size_t>(first * 4)], part.lse.size(),
                  part.lse.begin());
      EXPECT_TRUE(is_close({layer.views()[i]}, own, in_pages, part))
          << "window " << window << ", sequence " << i;
    }
  }
}

TEST(AttendGenericRandom, AnyRecipeWithAnyOptionsIsCloseToFloat64) {
  Random random(5);
  for (int round = 0; round < 40; ++round) {
    const int page_tokens = pick(random, {32, 64, 128});
    LayerShape shape{2, 64, 64, random.chance(3) ? random.between(50, 300) : 0};
    shape.keep_sinks = random.chance(2);
    std::vector<Recipe> recipes;
    for (int head = 0; head < 2; ++head)
      recipes.push_back(
          {random_format(random, 64, page_tokens), random_format(random, 64, page_tokens)});
    const CachedLayer layer(random, shape, recipes, {random.between(70, 420)}, page_tokens);
    const Rows<float> queries =
        random_queries(random, shape, random.between(1, 6), random.between(1, 4));
    const RandomOptions asked(random, shape, queries);
    const EmulatedLaunch launch{
        random.between(1, 6),
        random.between(1, 3),
        0,
        {LaunchOrder::Shuffled, static_cast<std::uint32_t>(random.below(1000))}};
    const Output output =
        emulated_attend<GenericTraits<64>>(layer.device(), queries, asked.options, launch);
    EXPECT_TRUE(is_close(layer.views(), queries, asked.options, output))
        << "round " << round << ", " << to_string(recipes[0]) << " " << to_string(recipes[1]);
  }
}

TEST(AttendGenericHostile, SlotsWithoutATokenNeverReachAResult) {
  Random random(6);
  for (const Recipe& recipe :
       {with_widths(3, 2), Recipe{per_token(5), per_channel(7, 16)},
        Recipe{per_channel(6, 16), per_token(4, 32)}, Recipe{{}, per_token(8)}, with_widths(8, 16)})
    for (const int held : {1, 15, 16, 37, 63}) {
      CachedLayer layer(random, {1, 64, 64, 0}, {recipe}, {100}, 64);
      KVTILT_EXPECT_OK(layer.cache.truncate(layer.ids[0], layer.options.sink_tokens + held));
      ASSERT_EQ(layer.views()[0].page_count, 2);
      const DeviceLayer device = layer.device();
      poison(device, held);
      const Rows<float> queries = random_queries(random, layer.shape, 1, 3);
      const Output output = emulated_attend<GenericTraits<64>>(device, queries, {}, {2, 2, 0, {}});
      EXPECT_TRUE(is_close(layer.views(), queries, {}, output))
          << to_string(recipe) << ", " << held << " tokens";
    }
}

TEST(AttendGenericProperty, MagnitudesUpToTheLargestKeepTheirAccuracy) {
  for (const float key : {1e-3f, 30.0f, 10000.0f}) {
    Random random(7);
    const Recipe recipe{per_token(3), per_channel(6)};
    const CachedLayer layer(random, {1, 64, 64, 0}, {recipe}, {100}, 32, key, 0.0f);
    const Rows<float> queries = random_queries(random, layer.shape, 1, 4, 1.0f / key);
    const Output output = emulated_attend<GenericTraits<64>>(layer.device(), queries, {});
    EXPECT_TRUE(is_close(layer.views(), queries, {}, output)) << key;
  }
}

// The scale of 7 codes from -65504 to 65504 is rounded up, so the last code decodes to more than
// 65504.
TEST(AttendGenericHostile, ValuesBeyondFp16AreTheLargest) {
  for (const Recipe& recipe :
       {Recipe{per_channel(3), per_channel(3)}, Recipe{per_token(3), per_token(3)}}) {
    Recipe min_max = recipe;
    min_max.key.rule = min_max.value.rule = RangeRule::MinMax;
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 0;
    KVCache cache = make_cache(LayerShape{1, 64, 64, 0}, min_max, options);
    const SequenceId id = open_reserved(cache, 36);
    Rows<float> keys(36, 1, 64);
    Rows<float> values(36, 1, 64);
    for (int token = 0; token < 36; ++token)
      for (int channel = 0; channel < 64; ++channel)
        keys.at(token, 0, channel) = values.at(token, 0, channel) =
            (token + channel) % 4 != 0 ? f16_max : -f16_max;
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    const std::vector<LayerView> views = {cache.view(id, 0).value()};
    const LiveHead live(views[0], 0);
    EXPECT_GT(*std::max_element(live.values.begin(), live.values.end()), f16_max);
    Random random(8);
    const Rows<float> queries = random_queries(random, views[0].shape, 1, 2, 1e-6f);
    const Output output =
        emulated_attend<GenericTraits<64>>({views, {min_max}, options}, queries, {});
    // Three of four values saturate, to 64 less than 65568: within the tolerance.
    EXPECT_TRUE(is_close(views, queries, {}, output));
  }
}

TEST(AttendGeneric, KnowsWhichCodesFillWords) {
  EXPECT_TRUE(GenericTraits<64>::supports(with_widths(1, 7), 32));
  EXPECT_TRUE((GenericTraits<80, 112>::supports(with_widths(2, 4), 32)));
  EXPECT_FALSE((GenericTraits<80, 112>::supports(with_widths(2, 3), 32)));
  EXPECT_FALSE((GenericTraits<80, 112>::supports(with_widths(5, 4), 32)));
  EXPECT_TRUE((GenericTraits<80, 112>::supports(with_widths(5, 3), 64)));
}

}  // namespace
}  // namespace kvtilt::test
