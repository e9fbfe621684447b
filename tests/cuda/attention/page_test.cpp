// SPDX-License-Identifier: MIT
// The pieces of a page; block_test.cpp attends to whole caches.
#include <kvtilt/cuda/attention/page.hpp>

#include "support/attend_check.hpp"
#include "support/attend_item.hpp"
#include "support/device_layer.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::column_of;
using test::EmulatedThreads;
using test::outer_of;
using test::Random;
using test::Rows;

/// One sealed page in device order, and what it holds.
template <class Traits>
struct SealedPage {
  CacheOptions options;
  KVCache cache;
  LayerView view;
  test::DeviceLayer device;
  test::LiveHead live;

  explicit SealedPage(Random& random, float value_spread = 1.0f)
      : options(page_options()),
        cache(test::make_cache(shape(), recipe(), options)),
        view(filled(random, value_spread)),
        device({view}, {recipe()}, options),
        live(view, 0) {
    EXPECT_EQ(view.page_count, 1);
    EXPECT_EQ(view.pages[0].kind, PageKind::Sealed);
  }
  [[nodiscard]] const std::byte* data() const {
    const LayerStorage& layer = device.layer();
    return layer.block(PageKind::Sealed, 0) + layer.head(PageKind::Sealed, 0).offset;
  }
  [[nodiscard]] double key(int token, int channel) const {
    return static_cast<double>(
        live.keys[static_cast<std::size_t>(token * Traits::key_dim + channel)]);
  }
  [[nodiscard]] double value(int token, int channel) const {
    return static_cast<double>(
        live.values[static_cast<std::size_t>(token * Traits::value_dim + channel)]);
  }

 private:
  static CacheOptions page_options() {
    CacheOptions options;
    options.page_tokens = Traits::page_tokens;
    options.sink_tokens = 0;
    options.recent_tokens = 0;
    return options;
  }
  static LayerShape shape() { return {1, Traits::key_dim, Traits::value_dim, 0}; }
  static Recipe recipe() {
    return {key_format(Traits::key_bits, Granularity::PerChannel, Traits::key_group),
            value_format(Traits::value_bits, Granularity::PerToken, Traits::value_group)};
  }
  LayerView filled(Random& random, float value_spread) {
    const int tokens = Traits::page_tokens;
    const SequenceId id = test::open_reserved(cache, tokens);
    const Rows<float> keys = test::random_rows(random, tokens, 1, Traits::key_dim, 1.0f, 0.5f);
    const Rows<float> values =
        test::random_rows(random, tokens, 1, Traits::value_dim, value_spread, value_spread);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    return cache.view(id, 0).value();
  }
};

/// Every width, an odd number of steps, several groups, dimensions and page sizes that differ.
#define KVTILT_FOR_EACH_PAGE(check)              \
  check<PageTraits<1, 1, 64>>();                 \
  check<PageTraits<2, 2, 64>>();                 \
  check<PageTraits<4, 4, 64>>();                 \
  check<PageTraits<8, 8, 64>>();                 \
  check<PageTraits<3, 6, 64>>();                 \
  check<PageTraits<5, 3, 64>>();                 \
  check<PageTraits<6, 7, 64>>();                 \
  check<PageTraits<7, 5, 64>>();                 \
  check<PageTraits<4, 4, 80>>();                 \
  check<PageTraits<8, 8, 16>>();                 \
  check<PageTraits<4, 2, 64, 128, 32>>();        \
  check<PageTraits<4, 2, 64, 64, 64, 32, 32>>(); \
  check<PageTraits<2, 4, 64, 64, 128, 32, 16>>()

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
        const int band = tile * Traits::key_bands * tile_extent / Traits::page_tokens;
        const float got =
            std::fma(scores.product[tile][e], scores.factor[e], scores.bias[band][e % 2]);
        double expected = 0;
        double magnitude = 0;
        for (int c = 0; c < Traits::key_dim; ++c) {
          const double q = static_cast<double>(item.query(column)[c]);
          expected += q * page.key(tile * tile_extent + outer_of(threads.lane(), e), c);
          magnitude += std::abs(q) * 4;  // keys are below 4, and their groups twice as wide
        }
        const double scale = static_cast<double>(item.arguments.rules.scale);
        EXPECT_NEAR(static_cast<double>(got), scale * expected, 0x1p-11 * scale * magnitude)
            << Traits::key_bits << " bits, tile " << tile << ", column " << column;
      }
  });
}

TEST(AttendPage, ScoresAreProductsWithTheDecodedKeys) { KVTILT_FOR_EACH_PAGE(expect_products); }

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
      ValueScales<Traits> scales;
      typename Traits::State state;
      state.clear();
      state.code_units = true;
      state.exponent = std::max(scales.load_all(threads, page.data()), least_exponent);
      mix_page<Traits>(threads, page.data(), scores, scales, state);
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
