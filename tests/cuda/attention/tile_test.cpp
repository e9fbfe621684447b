// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

#include "support/attend_item.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::column_of;
using test::EmulatedThreads;
using test::outer_of;
using test::Random;
using test::Rows;

constexpr std::uint16_t nan_bits = 0x7eff;

/// 16 tokens of one head in 16 bits; the slots from `tokens` on hold NaN.
template <int KeyDim, int ValueDim>
struct Tile {
  Rows<float> keys;
  Rows<float> values;
  std::vector<Words> key_words;
  std::vector<Words> value_words;

  Tile(Random& random, int tokens)
      : keys(test::rounded_to_half(test::random_rows(random, 16, 1, KeyDim))),
        values(test::rounded_to_half(test::random_rows(random, 16, 1, ValueDim))),
        key_words(half_tile_bytes(KeyDim) / sizeof(Words)),
        value_words(half_tile_bytes(ValueDim) / sizeof(Words)) {
    for (int token = 0; token < 16; ++token) {
      for (int c = 0; c < KeyDim; ++c)
        put(key_words, half_offset(Role::Keys, {16, KeyDim}, token, c),
            token < tokens ? to_f16(keys.at(token, 0, c)).bits : nan_bits);
      for (int c = 0; c < ValueDim; ++c)
        put(value_words, half_offset(Role::Values, {ValueDim, 16}, c, token),
            token < tokens ? to_f16(values.at(token, 0, c)).bits : nan_bits);
    }
  }
  [[nodiscard]] const std::byte* key_bytes() const {
    return reinterpret_cast<const std::byte*>(key_words.data());
  }
  [[nodiscard]] const std::byte* value_bytes() const {
    return reinterpret_cast<const std::byte*>(value_words.data());
  }

 private:
  static void put(std::vector<Words>& words, std::size_t byte, std::uint16_t bits) {
    std::memcpy(reinterpret_cast<std::byte*>(words.data()) + byte, &bits, sizeof bits);
  }
};

/// A decode step of 8 heads over two tiles: a full one, and one of `tokens` tokens that needs
/// masks.
template <int KeyDim, int ValueDim>
void expect_attention(int tokens) {
  Random random(static_cast<std::uint64_t>(tokens));
  const Tile<KeyDim, ValueDim> full(random, 16);
  const Tile<KeyDim, ValueDim> part(random, tokens);
  const AttendItem item(test::random_rows(random, 1, 8, KeyDim), 16 + tokens);
  std::vector<double> out(static_cast<std::size_t>(8 * ValueDim));
  double sums[8] = {};
  for (int row = 0; row < 8; ++row)
    for (int token = 0; token < 16 + tokens; ++token) {
      const auto& tile = token < 16 ? full : part;
      double logit = 0;
      for (int c = 0; c < KeyDim; ++c)
        logit += static_cast<double>(item.query(row)[c]) *
                 static_cast<double>(tile.keys.at(token % 16, 0, c));
      const double weight = std::exp2(logit * static_cast<double>(item.arguments.rules.scale));
      sums[row] += weight;
      for (int c = 0; c < ValueDim; ++c)
        out[static_cast<std::size_t>(row * ValueDim + c)] +=
            weight * static_cast<double>(tile.values.at(token % 16, 0, c));
    }
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    QueryTile<KeyDim> query;
    query.load(threads, item.arguments, item.rows);
    AttendState<ValueDim, 0, 1> state;
    state.clear();
    attend_tile<KeyDim, ValueDim>(
        threads, item.arguments, item.rows, HalfFragments{full.key_bytes()},
        HalfFragments{full.value_bytes()}, 0, 16, false, false, query, state);
    attend_tile<KeyDim, ValueDim>(
        threads, item.arguments, item.rows, HalfFragments{part.key_bytes()},
        HalfFragments{part.value_bytes()}, 16, tokens, false, true, query, state);
    state.finish(threads);
    for (int tile = 0; tile < ValueDim / 16; ++tile)
      for (int e = 0; e < 4; ++e) {
        const int row = column_of(threads.lane(), e);
        const int channel = tile * 16 + outer_of(threads.lane(), e);
        const double got = static_cast<double>(state.output[tile][e] / state.sum[e % 2]);
        EXPECT_NEAR(got, out[static_cast<std::size_t>(row * ValueDim + channel)] / sums[row], 3e-3)
            << tokens << " tokens, row " << row << ", channel " << channel;
      }
  });
}

TEST(AttendTile, WhatLiesInUnusedSlotsReachesNothing) {
  for (int tokens = 0; tokens <= 16; ++tokens) expect_attention<64, 64>(tokens);
}

/// Up to eight loads are in flight: dimensions with fewer, with more and with no multiple of eight.
TEST(AttendTile, EveryHeadDimensionIsCloseToFloat64) {
  expect_attention<16, 16>(5);
  expect_attention<80, 112>(12);
  expect_attention<192, 128>(16);
}

TEST(TilesAhead, DivideTheRunWhereTheyCan) {
  EXPECT_EQ(tiles_ahead(8, 8), 8);
  EXPECT_EQ(tiles_ahead(16, 8), 8);
  EXPECT_EQ(tiles_ahead(12, 8), 4);
  EXPECT_EQ(tiles_ahead(6, 4), 2);
  EXPECT_EQ(tiles_ahead(5, 8), 8);  // single loads would be slower than predicates
  EXPECT_EQ(tiles_ahead(6, 1), 1);
}

TEST(AttendTile, IsWhatHalfTraitsCount) {
  using Traits = HalfTraits<96, 64, 32>;
  EXPECT_EQ(Traits::page_units, 2);
  EXPECT_EQ(Traits::key_bytes, 16u * 96 * 2);
  EXPECT_EQ(Traits::stage_bytes, 16u * (96 + 64) * 2);
}

}  // namespace
}  // namespace kvtilt::cuda
