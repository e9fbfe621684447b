// SPDX-License-Identifier: MIT
/// A warp's state in the prefill kernel: its queries, and the sums and the softmax of its query rows,
/// in the registers in which mma leaves them.
///
/// A lane (g = lane / 4, t = lane % 4) holds parts of the warp's rows 16 m + 8 h + g, m < M, h < 2:
/// four of each 16 tokens' logits and of each 16 channels' sums. Element [m][2 i + parity][2 h + j]
/// of a register array is of token or channel 4t + 2 j + parity in tile i.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/cuda/attention/merge.hpp>
#include <kvtilt/cuda/attention/prefill_tile.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// What masks need to know of a staged tile.
struct StagedTile {
  std::int64_t first_position;
  std::int32_t tokens;
  std::int32_t sink;
};

/// A query row. Kept small: it lies in shared memory, where small devices have just enough
/// (PrefillShared).
struct QueryRow {
  float factor;         ///< logit per unit of product
  std::uint16_t token;  ///< in the row tile
  std::uint16_t head;   ///< query head
};

/// A row's token of the chunk, and its place in the tensors. Rows beyond the tile's end stand for its
/// first.
struct RowOfTile {
  int token;
  RowPlace place;

  KVTILT_HD static RowOfTile of(const RowTile& tile, int gqa_ratio, int row) {
    const int own = row < tile.rows(gqa_ratio) ? row : 0;
    const int token = own / gqa_ratio;
    return {
        tile.token + token,
        {tile.first_row + tile.token + token, tile.kv_head * gqa_ratio + own - token * gqa_ratio}};
  }
};

/// Logits of score_tiles tiles of a unit.
template <class Traits>
using TileLogits = float[Traits::row_tiles][2 * Traits::score_tiles][4];

template <class Traits>
struct PrefillState {
  static constexpr int M = Traits::row_tiles;
  static constexpr int score_tiles = Traits::score_tiles;
  /// Floats from row to row in shared memory: neighbouring rows start in different banks.
  static constexpr int row_stride = Traits::value_dim + 4;

  float output[M][2 * Traits::channel_tiles][4];
  float maximum[M][2];  ///< base 2
  float sum[M][2];      ///< of this lane's tokens

  KVTILT_HD void clear() {
    KVTILT_DEVICE_UNROLL
    for (int m = 0; m < M; ++m) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 2 * Traits::channel_tiles; ++i)
        KVTILT_DEVICE_UNROLL
        for (int e = 0; e < 4; ++e) output[m][i][e] = 0.0f;
      KVTILT_DEVICE_UNROLL
      for (int h = 0; h < 2; ++h) {
        maximum[m][h] = no_maximum;
        sum[m][h] = 0.0f;
      }
    }
  }

  /// Stores the warp's queries at `to` as A operands, [m][step][lane]; each lane later reads what it
  /// wrote.
  ///
  /// first  the warp's first row in the tile
  /// rows   shared, [warp_rows]
  template <class Threads>
  KVTILT_HD void load_queries(Threads& threads, const AttendArguments& attend, const RowTile& tile,
                              int first, std::byte* to, QueryRow* rows) {
    constexpr int steps = Traits::steps;
    const int lane = threads.lane();
    KVTILT_DEVICE_LOOP
    for (int eight = 0; eight < 2 * M; ++eight) {
      const int own = eight * 8 + lane / 4;
      const RowOfTile row = RowOfTile::of(tile, attend.gqa_ratio, first + own);
      float channel[steps][4];
      std::uint32_t half[steps][2];
      load_query_row<steps>(attend, row.place, lane % 4 * 4, channel);
      const float factor = normalise_query<steps>(threads, attend.rules.scale, channel, half);
      if (lane % 4 == 0)
        rows[own] = {factor, static_cast<std::uint16_t>(row.token - tile.token),
                     static_cast<std::uint16_t>(row.place.head)};
      Word* words = reinterpret_cast<Word*>(to + (eight / 2 * steps * warp_lanes + lane) * 16 +
                                            eight % 2 * 4);
      KVTILT_DEVICE_UNROLL
      for (int step = 0; step < steps; ++step) {
        words[step * warp_lanes * 4] = half[step][0];
        words[step * warp_lanes * 4 + 2] = half[step][1];
      }
    }
    threads.sync_warp();
  }

  /// Multiplies the queries with the keys of score_tiles tiles.
  template <class Threads>
  KVTILT_HD void score(Threads& threads, const std::byte* queries, const std::byte* keys,
                       TileLogits<Traits>& logits) const {
    constexpr int steps = Traits::steps;
    const int lane = threads.lane() * 16;
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < steps; ++step) {
      Words query[M];
      KVTILT_DEVICE_UNROLL
      for (int m = 0; m < M; ++m)
        query[m] = load_words(queries + (m * steps + step) * fragment_tile_bytes + lane);
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < score_tiles; ++tile) {
        const Words key = load_words(keys + (tile * steps + step) * fragment_tile_bytes + lane);
        KVTILT_DEVICE_UNROLL
        for (int m = 0; m < M; ++m)
          KVTILT_DEVICE_UNROLL
          for (int parity = 0; parity < 2; ++parity) {
            float(&sums)[4] = logits[m][2 * tile + parity];
            const std::uint32_t(&pair)[4] = key.word;
            if (step == 0)
              threads.first_mma(sums, query[m].word, pair[2 * parity], pair[2 * parity + 1]);
            else
              threads.mma(sums, query[m].word, pair[2 * parity], pair[2 * parity + 1]);
          }
      }
    }
  }

  /// Logits per unit of product; loaded after each score(), during which registers have no room.
  struct Factors {
    float row[M][2];

    KVTILT_HD Factors(const QueryRow* rows, int lane) {
      KVTILT_DEVICE_UNROLL
      for (int m = 0; m < M; ++m)
        KVTILT_DEVICE_UNROLL
        for (int h = 0; h < 2; ++h) row[m][h] = rows[m * tile_extent + h * 8 + lane / 4].factor;
    }
    KVTILT_HD void clear() {
      KVTILT_DEVICE_UNROLL
      for (int m = 0; m < M; ++m) row[m][0] = row[m][1] = 1.0f;
    }
  };

  /// Turns products into logits: capped, sloped, and minus infinity where a row does not see a token.
  /// Factors become 1.
  ///
  /// rows  [warp_rows]
  template <class Threads>
  KVTILT_HD void transform_and_mask(Threads& threads, const AttendRules& rules, const RowTile& tile,
                                    const QueryRow* rows, const StagedTile* tiles,
                                    TileLogits<Traits>& logits, Factors& factors) const {
    const int lane = threads.lane();
    // One branch after the other: nested ones would be compiled for each combination.
    const auto each = [&](auto&& change) {
      KVTILT_DEVICE_UNROLL
      for (int m = 0; m < M; ++m)
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < 2 * score_tiles; ++i)
          KVTILT_DEVICE_UNROLL
          for (int e = 0; e < 4; ++e) change(logits[m][i][e], m, e / 2, i / 2, e % 2 * 2 + i % 2);
    };
    each([&](float& logit, int m, int h, int, int) { logit *= factors.row[m][h]; });
    if (rules.soft_cap > 0.0f)
      each([&](float& logit, int, int, int, int) {
        logit = rules.soft_cap * hyperbolic_tangent(logit);
      });
    if (rules.alibi_slopes != nullptr) {
      float slopes[M][2];
      int own[M][2];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 2 * M; ++i) {
        const QueryRow& row = rows[i * 8 + lane / 4];
        slopes[i / 2][i % 2] = log2_e * rules.alibi_slopes[row.head];
        own[i / 2][i % 2] = tile.token + row.token - lane % 4 * 4;
      }
      each([&](float& logit, int m, int h, int i, int slot) {
        const int distance =
            static_cast<int>(tiles[i].first_position - tile.past) + slot - own[m][h];
        logit += slopes[m][h] * static_cast<float>(distance);
      });
    }
    // One lane computes a row's mask of a tile, and passes it to the four lanes that need it.
    constexpr int own_masks = Traits::warp_rows * score_tiles / warp_lanes;
    std::uint32_t masks[own_masks];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < own_masks; ++i) {
      const int index = i * warp_lanes + lane;
      const StagedTile& staged = tiles[index % score_tiles];
      const int token = tile.token + rows[index / score_tiles].token;
      const ColumnView view =
          ColumnView::of(rules,
                         {tile.past + token, tile.new_from,
                          static_cast<int>(tile.past - tile.new_from) + tile.chunk_tokens,
                          rules.seen_rows(tile.chunk_tokens)},
                         tile.first_row + token, staged.first_position, staged.sink != 0);
      masks[i] = view.visible(0) & slots_before(staged.tokens);
    }
    std::uint32_t seen[M][2][score_tiles];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 2 * M * score_tiles; ++i) {
      const int first = i / score_tiles * 8 * score_tiles;
      const int from = first % warp_lanes + lane / 4 * score_tiles + i % score_tiles;
      seen[i / score_tiles / 2][i / score_tiles % 2][i % score_tiles] =
          threads.shuffle(masks[first / warp_lanes], from) >> (lane % 4 * 4);
    }
    each([&](float& logit, int m, int h, int i, int slot) {
      if ((seen[m][h][i] >> slot & 1u) == 0) logit = bit_cast<float>(minus_infinity_bits);
    });
    factors.clear();
  }

  /// Raises maxima once a logit passes one by more than maximum_slack.
  template <class Threads>
  KVTILT_HD void raise(Threads& threads, const TileLogits<Traits>& logits, const Factors& factors) {
    float largest[M][2];
    bool higher = false;
    KVTILT_DEVICE_UNROLL
    for (int m = 0; m < M; ++m)
      KVTILT_DEVICE_UNROLL
      for (int h = 0; h < 2; ++h) {
        float most = std::fmax(logits[m][0][2 * h], logits[m][0][2 * h + 1]);
        KVTILT_DEVICE_UNROLL
        for (int i = 1; i < 2 * score_tiles; ++i)
          most = std::fmax(most, std::fmax(logits[m][i][2 * h], logits[m][i][2 * h + 1]));
        largest[m][h] = most * factors.row[m][h];
        higher = higher || largest[m][h] > maximum[m][h] + maximum_slack;
      }
    if (threads.ballot(higher) == 0) return;
    KVTILT_DEVICE_UNROLL
    for (int m = 0; m < M; ++m)
      KVTILT_DEVICE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const float most = std::fmax(maximum[m][h], max_over_quad(threads, largest[m][h]));
        const float smaller = exp2_fast(maximum[m][h] - most);
        maximum[m][h] = most;
        sum[m][h] *= smaller;
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < 2 * Traits::channel_tiles; ++i) {
          output[m][i][2 * h] *= smaller;
          output[m][i][2 * h + 1] *= smaller;
        }
      }
  }

  /// Turns logits into weights, and adds the tiles' weighted values.
  template <class Threads>
  KVTILT_HD void mix(Threads& threads, const std::byte* values, TileLogits<Traits>& logits,
                     const Factors& factors) {
    const int lane = threads.lane() * 16;
    KVTILT_DEVICE_UNROLL
    for (int m = 0; m < M; ++m)
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 2 * score_tiles; ++i)
        KVTILT_DEVICE_UNROLL
        for (int e = 0; e < 4; ++e) {
          logits[m][i][e] =
              exp2_fast(std::fma(logits[m][i][e], factors.row[m][e / 2], -maximum[m][e / 2]));
          sum[m][e / 2] += logits[m][i][e];
        }
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < score_tiles; ++tile) {
      std::uint32_t weights[M][4];
      KVTILT_DEVICE_UNROLL
      for (int m = 0; m < M; ++m)
        KVTILT_DEVICE_UNROLL
        for (int reg = 0; reg < 4; ++reg) {
          const float(&from)[4] = logits[m][2 * tile + reg / 2];
          weights[m][reg] = pack_halves(from[reg % 2 * 2], from[reg % 2 * 2 + 1]);
        }
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < Traits::channel_tiles; ++i) {
        const Words value =
            load_words(values + (tile * Traits::channel_tiles + i) * fragment_tile_bytes + lane);
        KVTILT_DEVICE_UNROLL
        for (int m = 0; m < M; ++m)
          KVTILT_DEVICE_UNROLL
          for (int parity = 0; parity < 2; ++parity)
            threads.mma(output[m][2 * i + parity], weights[m], value.word[2 * parity],
                        value.word[2 * parity + 1]);
      }
    }
  }

  /// Stores the rows in shared memory, which frees their registers.
  ///
  /// outputs  [warp_rows][row_stride]
  /// states   [warp_rows][maximum, sum]
  template <class Threads>
  KVTILT_HD void store(Threads& threads, float* outputs, float* states) {
    const int lane = threads.lane();
    KVTILT_DEVICE_UNROLL
    for (int m = 0; m < M; ++m)
      KVTILT_DEVICE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int own = m * tile_extent + h * 8 + lane / 4;
        float total = sum[m][h];
        total += threads.shuffle_xor(total, 1);
        total += threads.shuffle_xor(total, 2);
        if (lane % 4 == 0) {
          states[own * 2] = maximum[m][h];
          states[own * 2 + 1] = total;
        }
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < Traits::channel_tiles; ++i) {
          const float(&even)[4] = output[m][2 * i];
          const float(&odd)[4] = output[m][2 * i + 1];
          *reinterpret_cast<Quad*>(outputs + own * row_stride + i * tile_extent + lane % 4 * 4) = {
              {even[2 * h], odd[2 * h], even[2 * h + 1], odd[2 * h + 1]}};
        }
      }
  }

 private:
  template <class Threads>
  KVTILT_HD static float max_over_quad(Threads& threads, float value) {
    value = std::fmax(value, threads.shuffle_xor(value, 1));
    return std::fmax(value, threads.shuffle_xor(value, 2));
  }
};

}  // namespace kvtilt::cuda
