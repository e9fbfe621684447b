// SPDX-License-Identifier: MIT
/// What lies between the two products of attention: logits and their weights.
#pragma once

#include <kvtilt/cuda/attention/query.hpp>
#include <kvtilt/cuda/attention/state.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {

/// Logits of `Tiles` times 16 tokens as mma leaves them, and what makes base-2 logits of them.
/// Tiles in a row, as many for each, share a band: a group of the keys.
template <int Tiles, int Bands>
struct Scores {
  static constexpr int band_tiles = Tiles / Bands;

  float product[Tiles][4];
  float factor[4];       ///< by element; positive
  float bias[Bands][2];  ///< by column

  /// The largest logits, by column. Factors keep the order of products: one logit a band suffices.
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

  /// Products become logits: capped, sloped, and minus infinity where a column does not see a token.
  KVTILT_HD void shape(const AttendArguments& arguments, const ItemRows& item, int lane,
                       std::int64_t first_position, int tokens, bool sink) {
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
          if ((visible >> (row + odd) & 1u) == 0) logit = bit_cast<float>(0xff800000u);
        }
      }
      KVTILT_DEVICE_UNROLL
      for (int band = 0; band < Bands; ++band) bias[band][column] = 0.0f;
    }
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e) factor[e] = 1.0f;
  }

  /// Products become weights 2^(logit - maximum), added to the sums.
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
