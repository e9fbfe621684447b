// SPDX-License-Identifier: MIT
/// Turns products of queries and keys into logits, and logits into softmax weights.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/cuda/attention/query.hpp>
#include <kvtilt/cuda/attention/state.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {

/// Products of `Tiles` times 16 tokens as mma leaves them; product * factor + bias is the base-2
/// logit. A band is a group of the keys: consecutive tiles, equally many each.
template <int Tiles, int Bands>
struct Scores {
  static constexpr int band_tiles = Tiles / Bands;

  float product[Tiles][4];
  float factor[4];       ///< by element; positive
  float bias[Bands][2];  ///< by column

  /// This lane's largest logits, by column. Factors are positive, so the largest product is enough.
  KVTILT_HD void largest(float (&most)[2]) const {
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) {
      most[column] = no_maximum;
      KVTILT_DEVICE_UNROLL
      for (int band = 0; band < Bands; ++band)
        KVTILT_DEVICE_UNROLL
        for (int e = column; e < 4; e += 2) {
          float highest = product[band * band_tiles][e];
          KVTILT_DEVICE_UNROLL
          for (int tile = 1; tile < band_tiles; ++tile)
            highest = std::fmax(highest, product[band * band_tiles + tile][e]);
          most[column] = std::fmax(most[column], std::fma(highest, factor[e], bias[band][column]));
        }
    }
  }

  /// Turns products into logits: capped, sloped, and minus infinity where a column does not see a
  /// token. Factors become 1, biases 0.
  KVTILT_HD void transform_and_mask(const AttendArguments& arguments, const ItemRows& item,
                                    int lane, std::int64_t first_position, int tokens, bool sink) {
    const AttendRules& rules = arguments.rules;
    const int row = lane / 4 * 2;
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) {
      const int item_column = lane % 4 * 2 + column;
      const ColumnView view = ColumnView::of(arguments, item, item_column, first_position, sink);
      const float slope =
          rules.alibi_slopes == nullptr
              ? 0.0f
              : log2_e * rules.alibi_slopes[item.query_head(arguments, item_column)];
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < Tiles; ++tile) {
        const int start = tile * tile_extent;
        const int held = tokens - start;
        std::uint32_t visible = view.visible(start);
        if (held < tile_extent) visible &= held <= 0 ? 0u : (1u << held) - 1;
        KVTILT_DEVICE_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
          float& logit = product[tile][2 * odd + column];
          logit = logit * factor[2 * odd + column] + bias[tile / band_tiles][column];
          if (rules.soft_cap > 0.0f) logit = rules.soft_cap * hyperbolic_tangent(logit);
          logit += slope * static_cast<float>(start + row + odd - view.own);
          if ((visible >> (row + odd) & 1u) == 0) logit = bit_cast<float>(minus_infinity_bits);
        }
      }
      KVTILT_DEVICE_UNROLL
      for (int band = 0; band < Bands; ++band) bias[band][column] = 0.0f;
    }
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e) factor[e] = 1.0f;
  }

  /// Turns products into weights 2^(logit - maximum), and adds them to the state's sums.
  template <class State>
  KVTILT_HD void weigh(State& state) {
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < Tiles; ++tile)
      KVTILT_DEVICE_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float shift = bias[tile / band_tiles][e % 2] - state.maximum[e % 2];
        product[tile][e] = exp2_fast(std::fma(product[tile][e], factor[e], shift));
        state.sum[e % 2] += product[tile][e];
      }
  }
};

}  // namespace kvtilt::cuda
