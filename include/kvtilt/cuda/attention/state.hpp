// SPDX-License-Identifier: MIT
/// A warp's state between units: the online softmax of 8 columns (query rows), and their sums of
/// values, in the registers in which mma leaves them.
///
/// A lane (g = lane / 4, t = lane % 4) holds columns 2t and 2t + 1. Element e of a register array
/// [tile][4] is of row 2g + e / 2 of the tile (key token, value channel) and column 2t + e % 2.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragments.hpp>

#include <cmath>

namespace kvtilt::cuda {

/// Below every logit; finite, so that differences with it are, too.
inline constexpr float no_maximum = -1e30f;

/// A maximum is raised only when a logit passes it by more than this, in base 2: weights stay below
/// 2^8, which fp16 holds, and outputs are seldom rescaled.
inline constexpr float maximum_slack = 8.0f;

/// Least exponent that fp16 weights times scales can be normalised by.
inline constexpr int least_exponent = -14;

/// ValueShift   outer_shift() of the values' width
/// Bands        groups of a token's values, the last of which may be shorter
/// BandTiles    tiles of each of the others
template <int ValueDim, int ValueShift, int Bands, int BandTiles = ValueDim / tile_extent / Bands>
struct AttendState {
  static constexpr int tiles = ValueDim / tile_extent;

  float output[tiles][4];  ///< in values, or code units: values * 2^(-24 - exponent), odd rows
                           ///< * 2^ValueShift
  float maximum[2];        ///< by column, base 2
  float sum[2];            ///< of weights, over this lane's tokens
  float minima[Bands][2];  ///< sums of weight times minimum, of this lane's tokens
  int exponent;            ///< weights are multiplied by scales * 2^-exponent
  bool code_units;

  KVTILT_HD void clear() {
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < tiles; ++tile)
      KVTILT_DEVICE_UNROLL
      for (int e = 0; e < 4; ++e) output[tile][e] = 0.0f;
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) {
      maximum[column] = no_maximum;
      sum[column] = 0.0f;
      KVTILT_DEVICE_UNROLL
      for (int band = 0; band < Bands; ++band) minima[band][column] = 0.0f;
    }
    exponent = least_exponent;
    code_units = false;
  }

  KVTILT_HD void scale_outputs(float even, float odd) {
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < tiles; ++tile) {
      output[tile][0] *= even;
      output[tile][1] *= even;
      output[tile][2] *= odd;
      output[tile][3] *= odd;
    }
  }

  KVTILT_HD void use_code_units() {
    if (code_units) return;
    code_units = true;
    scale_outputs(float_power(-24 - exponent), float_power(ValueShift - 24 - exponent));
  }
  KVTILT_HD void use_value_units() {
    if (!code_units) return;
    code_units = false;
    scale_outputs(float_power(24 + exponent), float_power(24 + exponent - ValueShift));
  }

  /// Raises maxima once a logit passes one by more than maximum_slack, and the exponent to
  /// `needed`, so that scales below 2^needed fit.
  ///
  /// largest  logits of this lane's tokens, by column
  /// needed   the same in all lanes
  template <class Threads>
  KVTILT_HD void raise(Threads& threads, const float (&largest)[2], int needed) {
    const bool higher = largest[0] > maximum[0] + maximum_slack ||
                        largest[1] > maximum[1] + maximum_slack || needed > exponent;
    if (threads.ballot(higher) == 0) return;
    float factor[2];
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) {
      float most = largest[column];
      KVTILT_DEVICE_UNROLL
      for (int mask = 4; mask < 32; mask *= 2)
        most = std::fmax(most, threads.shuffle_xor(most, mask));
      most = std::fmax(most, maximum[column]);
      factor[column] = exp2_fast(maximum[column] - most);
      maximum[column] = most;
      sum[column] *= factor[column];
      KVTILT_DEVICE_UNROLL
      for (int band = 0; band < Bands; ++band) minima[band][column] *= factor[column];
    }
    const float to_exponent =
        needed > exponent && code_units ? float_power(exponent - needed) : 1.0f;
    if (needed > exponent) exponent = needed;
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column) factor[column] *= to_exponent;
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < tiles; ++tile)
      KVTILT_DEVICE_UNROLL
      for (int e = 0; e < 4; ++e) output[tile][e] *= factor[e % 2];
  }

  /// Sums over the lanes that share columns; adds minima to outputs, in values.
  template <class Threads>
  KVTILT_HD void finish(Threads& threads) {
    use_value_units();
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column)
      KVTILT_DEVICE_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) {
        sum[column] += threads.shuffle_xor(sum[column], mask);
        KVTILT_DEVICE_UNROLL
        for (int band = 0; band < Bands; ++band)
          minima[band][column] += threads.shuffle_xor(minima[band][column], mask);
      }
    KVTILT_DEVICE_UNROLL
    for (int tile = 0; tile < tiles; ++tile)
      KVTILT_DEVICE_UNROLL
      for (int e = 0; e < 4; ++e) output[tile][e] += minima[tile / BandTiles][e % 2];
  }
};

}  // namespace kvtilt::cuda
