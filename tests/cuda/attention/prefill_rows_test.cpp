// SPDX-License-Identifier: MIT
// The steps of a warp's query rows; prefill_block_test.cpp attends to whole chunks.
#include <kvtilt/cuda/attention/prefill_rows.hpp>

#include "support/emulated_threads.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;
using test::Rows;

constexpr int row_dim = 32;
using RowTraits = PrefillTraits<GenericTraits<row_dim>>;
using RowState = PrefillState<RowTraits>;

TEST(PrefillRows, RowsAreTokensTimesTheHeadsOfAGroup) {
  RowTile tile{};
  tile.kv_head = 2;
  tile.token = 10;
  tile.tokens = 4;
  tile.first_row = 100;
  for (int row = 0; row < 12; ++row) {
    const RowOfTile of = RowOfTile::of(tile, 3, row);
    EXPECT_EQ(of.token, 10 + row / 3);
    EXPECT_EQ(of.place.row, 110 + row / 3);
    EXPECT_EQ(of.place.head, 6 + row % 3);
  }
  EXPECT_EQ(RowOfTile::of(tile, 3, 12).token, 10) << "rows that do not exist stand for the first";
}

/// The queries of 32 tokens and one head, which are the rows of one warp.
struct Warp {
  Rows<float> queries;
  PrefillArguments arguments{};
  RowTile tile{};
  std::vector<std::byte> operands =
      std::vector<std::byte>(RowTraits::row_tiles * RowTraits::key_bytes);
  std::vector<QueryRow> rows = std::vector<QueryRow>(RowTraits::warp_rows);

  explicit Warp(Random& random)
      : queries(test::random_rows(random, RowTraits::warp_rows, 1, row_dim)) {
    arguments.attend.layer.kv_heads = 1;
    arguments.attend.query_heads = 1;
    arguments.attend.gqa_ratio = 1;
    arguments.attend.query = queries.data.data();
    arguments.attend.query_type = ElementType::F32;
    arguments.attend.query_token_stride = row_dim;
    arguments.attend.rules.scale = 0.5f;
    arguments.attend.rules.end_position = 1000;
    tile.tokens = tile.chunk_tokens = RowTraits::warp_rows;
    tile.past = 3;
  }
  void load(EmulatedThreads& threads, RowState& state) {
    state.clear();
    state.load_queries(threads, arguments.attend, tile, 0, operands.data(), rows.data());
  }
};

/// Keys of 16 tokens per tile, in the order of staged tiles.
std::vector<std::byte> staged_keys(const Rows<float>& keys, int tiles) {
  std::vector<std::byte> staged(static_cast<std::size_t>(tiles) * RowTraits::key_bytes);
  for (int token = 0; token < tiles * tile_extent; ++token)
    for (int c = 0; c < row_dim; ++c) {
      const FragmentPlace place = fragment_place(Role::Keys, token % tile_extent, c);
      constexpr int word_of_reg[4] = {0, 2, 1, 3};
      const F16 half = to_f16(keys.at(token, 0, c));
      std::byte* to =
          staged.data() + static_cast<std::size_t>(token / tile_extent) * RowTraits::key_bytes +
          c / tile_extent * 512 + place.lane * 16 + word_of_reg[place.reg] * 4 + place.half * 2;
      *reinterpret_cast<F16*>(to) = half;
    }
  return staged;
}

TEST(PrefillRows, LogitsAreProductsOfRowsWithTokensAndMasksHideTheRest) {
  Random random(1);
  Warp warp(random);
  constexpr int tokens = RowTraits::score_tiles * tile_extent;
  const Rows<float> keys = test::random_rows(random, tokens, 1, row_dim);
  const std::vector<std::byte> staged = staged_keys(keys, RowTraits::score_tiles);
  // The second tile holds 10 of 16 tokens.
  const StagedTile tiles[] = {{0, 16, 0}, {16, 10, 0}};
  int wrong = 0;
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    RowState state;
    warp.load(threads, state);
    TileLogits<RowTraits> logits;
    state.score(threads, warp.operands.data(), staged.data(), logits);
    RowState::Factors factors(warp.rows.data(), threads.lane());
    state.transform_and_mask(threads, warp.arguments.attend.rules, warp.tile, warp.rows.data(),
                             tiles, logits, factors);
    for (int m = 0; m < RowState::M; ++m)
      for (int i = 0; i < 2 * RowTraits::score_tiles; ++i)
        for (int e = 0; e < 4; ++e) {
          const int row = m * tile_extent + e / 2 * 8 + threads.lane() / 4;
          const int token = i / 2 * tile_extent + threads.lane() % 4 * 4 + e % 2 * 2 + i % 2;
          double product = 0;
          for (int c = 0; c < row_dim; ++c)
            product += static_cast<double>(warp.queries.at(row, 0, c)) *
                       static_cast<double>(keys.at(token, 0, c));
          const bool seen = token <= 3 + row && token < 26;
          const double got = static_cast<double>(logits[m][i][e]);
          wrong += seen ? std::abs(got - 0.5 * product) > 1e-2 : !(got == -HUGE_VAL);
        }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(PrefillRows, RowsReachSharedMemoryWithTheirSums) {
  std::vector<float> outputs(RowTraits::warp_rows * RowState::row_stride);
  std::vector<float> states(RowTraits::warp_rows * 2);
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    RowState state;
    state.clear();
    const int g = threads.lane() / 4;
    const int t = threads.lane() % 4;
    for (int m = 0; m < RowState::M; ++m)
      for (int h = 0; h < 2; ++h) {
        const int row = m * tile_extent + h * 8 + g;
        state.maximum[m][h] = static_cast<float>(row);
        state.sum[m][h] = static_cast<float>(1 + t);
        for (int i = 0; i < 2 * RowTraits::channel_tiles; ++i)
          for (int j = 0; j < 2; ++j)
            state.output[m][i][2 * h + j] =
                static_cast<float>(1000 * row + i / 2 * tile_extent + 4 * t + 2 * j + i % 2);
      }
    state.store(threads, outputs.data(), states.data());
  });
  for (int row = 0; row < RowTraits::warp_rows; ++row) {
    EXPECT_EQ(states[static_cast<std::size_t>(2 * row)], static_cast<float>(row));
    EXPECT_EQ(states[static_cast<std::size_t>(2 * row + 1)], 10.0f);
    for (int c = 0; c < row_dim; ++c)
      EXPECT_EQ(outputs[static_cast<std::size_t>(row * RowState::row_stride + c)],
                static_cast<float>(1000 * row + c));
  }
}

TEST(PrefillRows, MaximaRiseOnlyBeyondTheSlack) {
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    RowState state;
    state.clear();
    QueryRow rows[RowTraits::warp_rows];
    for (QueryRow& row : rows) row.factor = 1.0f;
    const RowState::Factors factors(rows, threads.lane());
    TileLogits<RowTraits> logits;
    const auto raise = [&](float logit) {
      for (auto& m : logits)
        for (auto& i : m)
          for (float& e : i) e = logit;
      state.raise(threads, logits, factors);
      return state.maximum[1][1];
    };
    EXPECT_EQ(raise(5.0f), 5.0f);
    state.output[1][0][3] = 2.0f;
    state.sum[1][1] = 3.0f;
    EXPECT_EQ(raise(5.0f + maximum_slack), 5.0f);
    EXPECT_EQ(state.output[1][0][3], 2.0f);
    EXPECT_EQ(raise(6.0f + maximum_slack), 6.0f + maximum_slack);
    EXPECT_EQ(state.output[1][0][3], 2.0f * std::exp2(-1.0f - maximum_slack));
    EXPECT_EQ(state.sum[1][1], 3.0f * std::exp2(-1.0f - maximum_slack));
  });
}

}  // namespace
}  // namespace kvtilt::cuda
