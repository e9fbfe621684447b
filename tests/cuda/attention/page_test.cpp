// SPDX-License-Identifier: MIT
// The steps that attend to one page; block_test.cpp attends to whole caches.
#include <kvtilt/cuda/attention/page.hpp>

#include "support/attend_item.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"
#include "support/sealed_page.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::column_of;
using test::EmulatedThreads;
using test::outer_of;
using test::Random;
using test::Rows;
using test::SealedPage;

/// Every width, an odd number of steps, several groups, different dimensions and page sizes; keys
/// and values per channel and per token.
#define KVTILT_FOR_EACH_PAGE(check)                        \
  check<PageTraits<1, 1, 64>>();                           \
  check<PageTraits<2, 2, 64>>();                           \
  check<PageTraits<4, 4, 64>>();                           \
  check<PageTraits<8, 8, 64>>();                           \
  check<PageTraits<3, 6, 64>>();                           \
  check<PageTraits<5, 3, 64>>();                           \
  check<PageTraits<6, 7, 64>>();                           \
  check<PageTraits<7, 5, 64>>();                           \
  check<PageTraits<4, 4, 80>>();                           \
  check<PageTraits<8, 8, 16>>();                           \
  check<PageTraits<4, 2, 64, 128, 32>>();                  \
  check<PageTraits<4, 2, 64, 96, 64, 64, 64>>();           \
  check<PageTraits<4, 2, 64, 64, 64, 32, 32>>();           \
  check<PageTraits<2, 4, 64, 64, 128, 32, 16>>();          \
  check<TokenKeyTraits<1, 1, 64>>();                       \
  check<TokenKeyTraits<2, 2, 64>>();                       \
  check<TokenKeyTraits<3, 6, 64>>();                       \
  check<TokenKeyTraits<8, 8, 80>>();                       \
  check<TokenKeyTraits<7, 5, 64>>();                       \
  check<TokenKeyTraits<4, 2, 256, 64, 32>>();              \
  check<TokenKeyTraits<4, 4, 128, 64, 64, 32, 32>>();      \
  check<TokenKeyTraits<5, 4, 64, 64, 128, 16>>();          \
  check<ChannelValueTraits<1, 1, 64>>();                   \
  check<ChannelValueTraits<4, 2, 128>>();                  \
  check<ChannelValueTraits<4, 4, 80>>();                   \
  check<ChannelValueTraits<8, 8, 96>>();                   \
  check<ChannelValueTraits<6, 3, 64, 64, 64, 64, 32>>();   \
  check<ChannelValueTraits<2, 7, 64, 32, 128, 128, 32>>(); \
  check<PageTraits<4, 5, 64, 64, 64, 64, 64, Granularity::PerToken, Granularity::PerChannel>>()

template <class Traits>
void expect_products() {
  Random random(Traits::key_bits);
  const SealedPage<Traits> page(random);
  const AttendItem item(test::random_rows(random, 1, 7, Traits::key_dim), Traits::page_tokens);
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    QueryTile<Traits::key_dim> query;
    query.load(threads, item.arguments, item.rows);
    PageScores<Traits> scores;
    score_page<Traits>(threads, page.data(), query, scores);
    for (int tile = 0; tile < Traits::page_tokens / tile_extent; ++tile)
      for (int e = 0; e < 4; ++e) {
        const int column = column_of(threads.lane(), e);
        if (column >= item.rows.rows) continue;
        const int band =
            Traits::token_keys ? 0 : tile * Traits::key_bands * tile_extent / Traits::page_tokens;
        const float got =
            std::fma(scores.product[tile][e], scores.factor[e], scores.bias[band][e % 2]);
        double expected = 0;
        double magnitude = 0;
        for (int c = 0; c < Traits::key_dim; ++c) {
          const double q = static_cast<double>(item.query(column)[c]);
          expected += q * page.key(tile * tile_extent + outer_of(threads.lane(), e), c);
          magnitude += std::abs(q) * 4;  // keys are below 4; groups are twice as wide
        }
        const double scale = static_cast<double>(item.arguments.rules.scale);
        EXPECT_NEAR(static_cast<double>(got), scale * expected, 0x1p-11 * scale * magnitude)
            << Traits::key_bits << " bits, tile " << tile << ", column " << column;
      }
  });
}

TEST(AttendPage, ScoresAreProductsWithTheDecodedKeys) { KVTILT_FOR_EACH_PAGE(expect_products); }

/// Multiplies weights with a page's values, without a softmax.
template <class Traits>
void mix(EmulatedThreads& threads, const std::byte* page, const PageScores<Traits>& weights,
         typename Traits::State& state) {
  if constexpr (Traits::channel_values) {
    mix_channel_values<Traits>(threads, page, weights, state);
  } else {
    ValueScales<Traits> scales;
    state.code_units = true;
    state.exponent = std::max(scales.load_all(threads, page), least_exponent);
    mix_token_values<Traits>(threads, page, weights, scales, state);
  }
}

template <class Traits>
void expect_mixture() {
  Random random(Traits::value_bits);
  for (const float spread : {1e-4f, 1.0f, 4000.0f}) {
    const SealedPage<Traits> page(random, spread);
    Rows<float> weights = test::random_rows(random, Traits::page_tokens, 8, 1);
    for (float& weight : weights.data) weight = weight * weight;
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      PageScores<Traits> scores;
      for (int tile = 0; tile < Traits::page_tokens / tile_extent; ++tile)
        for (int e = 0; e < 4; ++e)
          scores.product[tile][e] = weights.at(tile * tile_extent + outer_of(threads.lane(), e),
                                               column_of(threads.lane(), e), 0);
      typename Traits::State state;
      state.clear();
      mix<Traits>(threads, page.data(), scores, state);
      state.finish(threads);
      for (int tile = 0; tile < Traits::State::tiles; ++tile)
        for (int e = 0; e < 4; ++e) {
          const int channel = tile * tile_extent + outer_of(threads.lane(), e);
          double expected = 0;
          double magnitude = 0;
          for (int token = 0; token < Traits::page_tokens; ++token) {
            const double weight =
                static_cast<double>(weights.at(token, column_of(threads.lane(), e), 0));
            expected += weight * page.value(token, channel);
            magnitude += weight * 8 * static_cast<double>(spread);
          }
          EXPECT_NEAR(static_cast<double>(state.output[tile][e]), expected, 0x1p-11 * magnitude)
              << Traits::value_bits << " bits, channel " << channel << ", spread " << spread;
        }
    });
  }
}

TEST(AttendPage, MixturesAreWeightedSumsOfTheDecodedValues) {
  KVTILT_FOR_EACH_PAGE(expect_mixture);
}

/// As many pages as a warp has of 32K tokens, the same page each time. Weights are powers of two,
/// so no product is rounded.
template <class Traits>
void expect_long_sums() {
  constexpr int pages = 128;
  Random random(Traits::value_bits);
  const SealedPage<Traits> page(random);
  const auto weight = [](int token) { return std::ldexp(1.0f, -(token % 3)); };
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    PageScores<Traits> scores;
    for (int tile = 0; tile < Traits::page_tokens / tile_extent; ++tile)
      for (int e = 0; e < 4; ++e)
        scores.product[tile][e] = weight(tile * tile_extent + outer_of(threads.lane(), e));
    typename Traits::State state;
    state.clear();
    for (int i = 0; i < pages; ++i) mix<Traits>(threads, page.data(), scores, state);
    state.finish(threads);
    for (int tile = 0; tile < Traits::State::tiles; ++tile)
      for (int e = 0; e < 4; ++e) {
        const int channel = tile * tile_extent + outer_of(threads.lane(), e);
        double expected = 0;
        double weights = 0;
        for (int token = 0; token < Traits::page_tokens; ++token) {
          weights += static_cast<double>(weight(token));
          expected += static_cast<double>(weight(token)) * page.value(token, channel);
        }
        const double lost = Traits::value_bits > 2 ? 0x1p-17 : 0x1p-15;
        EXPECT_NEAR(static_cast<double>(state.output[tile][e]) / pages, expected, lost * weights)
            << Traits::value_bits << " bits, channel " << channel;
      }
  });
}

TEST(AttendPage, LongSumsOfCodesLoseLittle) {
  expect_long_sums<PageTraits<1, 1, 64>>();
  expect_long_sums<PageTraits<2, 2, 64>>();
  expect_long_sums<PageTraits<2, 3, 64>>();
  expect_long_sums<PageTraits<4, 4, 64>>();
  expect_long_sums<PageTraits<5, 5, 64>>();
  expect_long_sums<PageTraits<4, 6, 64>>();
  expect_long_sums<PageTraits<7, 7, 64>>();
  expect_long_sums<PageTraits<8, 8, 64>>();
}

TEST(AttendPage, ExponentBoundsEveryScaleOfThePage) {
  using Traits = PageTraits<4, 4, 64, 64, 64, 64, 32>;
  Random random(3);
  for (const float spread : {1e-6f, 1e-3f, 1.0f, 10000.0f}) {
    const SealedPage<Traits> page(random, spread);
    const HeadLayout layout = Traits::layout();
    float largest = 0;
    for (int band = 0; band < Traits::value_bands; ++band)
      for (int token = 0; token < Traits::page_tokens; ++token)
        largest = std::max(largest, to_float(layout.value.scales(page.data(), band)[token]));
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      ValueScales<Traits> scales;
      const int exponent = scales.load_all(threads, page.data());
      EXPECT_LT(largest, std::ldexp(1.0f, exponent));
      if (exponent > least_exponent) {
        EXPECT_GE(largest, std::ldexp(1.0f, exponent - 1));
      }
    });
  }
}

}  // namespace
}  // namespace kvtilt::cuda
