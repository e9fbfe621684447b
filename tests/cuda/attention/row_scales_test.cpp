// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/row_scales.hpp>

#include "support/attend_item.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"
#include "support/sealed_page.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;
using test::Rows;

/// Multiplies per-channel values with random columns, added to sums that are not zero.
template <class Traits>
void expect_scaled_rows() {
  constexpr int rows = Traits::value_dim / tile_extent;
  constexpr int steps = Traits::page_tokens / tile_extent;
  Random random(static_cast<std::uint64_t>(Traits::value_bits * 1000 + rows));
  const test::SealedPage<Traits> page(random);
  Rows<float> columns = test::random_rows(random, Traits::page_tokens, 8, 1);
  for (float& entry : columns.data) entry = to_float(to_f16(entry));
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    std::uint32_t b[steps][2];
    for (int step = 0; step < steps; ++step)
      for (int half = 0; half < 2; ++half) {
        const int token = step * tile_extent + threads.lane() % 4 * 4 + half;  // fragment_order.hpp
        b[step][half] = pack_halves(columns.at(token, threads.lane() / 4, 0),
                                    columns.at(token + 2, threads.lane() / 4, 0));
      }
    float sum[rows][4];
    for (int row = 0; row < rows; ++row)
      for (int e = 0; e < 4; ++e) sum[row][e] = static_cast<float>(row * 4 + e);
    multiply_scaled_rows<Traits::value_bits, rows, steps, Traits::value_group / tile_extent>(
        threads, page.data() + Traits::value_codes + threads.lane() * 16,
        page.data() + Traits::value_metadata, b, sum);
    for (int row = 0; row < rows; ++row)
      for (int e = 0; e < 4; ++e) {
        double expected = row * 4 + e;
        for (int token = 0; token < Traits::page_tokens; ++token)
          expected +=
              static_cast<double>(columns.at(token, test::column_of(threads.lane(), e), 0)) *
              page.value(token, row * tile_extent + test::outer_of(threads.lane(), e));
        EXPECT_NEAR(static_cast<double>(sum[row][e]), expected, 1e-4)
            << Traits::value_bits << " bits, row " << row << ", element " << e;
      }
  });
}

// One to eight row tiles, which are summed four at a time; with one group and with several.
TEST(RowScales, ProductsAreThoseOfTheDecodedValues) {
  expect_scaled_rows<ChannelValueTraits<1, 1, 64>>();
  expect_scaled_rows<ChannelValueTraits<2, 2, 64, 96, 64, 64, 16>>();
  expect_scaled_rows<ChannelValueTraits<3, 3, 64, 128>>();
  expect_scaled_rows<ChannelValueTraits<4, 4, 64, 16>>();
  expect_scaled_rows<ChannelValueTraits<4, 4, 64, 48, 64, 64, 32>>();
  expect_scaled_rows<ChannelValueTraits<5, 5, 64, 128, 128, 128, 64>>();
  expect_scaled_rows<ChannelValueTraits<6, 6, 64, 32, 64, 64, 32>>();
  expect_scaled_rows<ChannelValueTraits<7, 7, 64, 64>>();
  expect_scaled_rows<ChannelValueTraits<8, 8, 64, 80, 32>>();
}

}  // namespace
}  // namespace kvtilt::cuda
