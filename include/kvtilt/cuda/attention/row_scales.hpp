// SPDX-License-Identifier: MIT
/// Multiplies with a quantized tensor whose scales belong to the rows of the mma's A operand: keys
/// per token, values per channel. Scales of its columns go into the other operand, at a lower cost:
/// page.hpp.
#pragma once

#include <kvtilt/cuda/page/fragments.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Adds s_row sum_k code_row,k b_k + z_row sum_k b_k to sum_row, for scales s and minima z of one
/// group of `GroupSteps` tiles along k after the other.
///
/// codes     of the tensor, for this lane: [step][row tile], 16 bytes at a time
/// metadata  [group][scale of each row, minimum of each row], fp16
/// b         fp16, registers of the mma's B operand
/// Rows      row tiles; four are summed at a time, to save registers
template <int Bits, int Rows, int Steps, int GroupSteps, class Threads>
KVTILT_HD void multiply_scaled_rows(Threads& threads, const std::byte* codes,
                                    const std::byte* metadata, const std::uint32_t (&b)[Steps][2],
                                    float (&sum)[Rows][4]) {
  static_assert(Steps % GroupSteps == 0);
  constexpr int together = Rows < 4 ? Rows : 4;
  constexpr int row_bytes = 2 * tile_extent;  // of a tile's scales
  constexpr std::uint32_t inner_factor = half_power(-inner_shift(Bits)) * 0x10001u;
  constexpr std::uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
  const int lane = threads.lane();
  KVTILT_DEVICE_UNROLL
  for (int begin = 0; begin < Steps; begin += GroupSteps) {
    float total[4];  // sum_k b_k, in all rows
    KVTILT_DEVICE_UNROLL
    for (int step = begin; step < begin + GroupSteps; ++step)
      if (step == begin)
        threads.first_mma(total, ones, b[step][0], b[step][1]);
      else
        threads.mma(total, ones, b[step][0], b[step][1]);
    KVTILT_DEVICE_UNROLL
    for (int first = 0; first < Rows; first += together) {
      TileReader<Bits, Rows * Steps> reader;
      float product[together][4];
      KVTILT_DEVICE_UNROLL
      for (int step = begin; step < begin + GroupSteps; ++step) {
        std::uint32_t second = b[step][1];
        if constexpr (inner_shift(Bits) > 0) second = multiply_halves(second, inner_factor);
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < together; ++i)
          if (first + i < Rows) {
            std::uint32_t a[4];
            reader.read(codes, step * Rows + first + i, a);
            if (step == begin)
              threads.first_mma(product[i], a, b[step][0], second);
            else
              threads.mma(product[i], a, b[step][0], second);
          }
      }
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < together; ++i)
        if (first + i < Rows) {
          const std::byte* own = metadata + begin / GroupSteps * (2 * Rows * row_bytes) +
                                 (first + i) * row_bytes + lane / 4 * 4;
          const std::uint32_t scale = load_word(own);
          const std::uint32_t minimum = load_word(own + Rows * row_bytes);
          const float even = low_half(scale) * float_power(24);
          const float odd = high_half(scale) * float_power(24 - outer_shift(Bits));
          KVTILT_DEVICE_UNROLL
          for (int e = 0; e < 4; ++e) {
            float& own_sum = sum[first + i][e];
            own_sum = std::fma(e < 2 ? low_half(minimum) : high_half(minimum), total[e], own_sum);
            own_sum = std::fma(e < 2 ? even : odd, product[i][e], own_sum);
          }
        }
    }
  }
}

}  // namespace kvtilt::cuda
