// SPDX-License-Identifier: MIT
// 16-bit rounding for the baseline cache. Deliberately not kvtilt's own: the baseline that judges the
// library must not share its rounding code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace llama {

/// The nearest f16 value (ties to even) as a float; magnitudes from 65520 on become infinite.
inline float round_to_f16(float value) {
  const float magnitude = std::fabs(value);
  float rounded = 0;
  if (!(magnitude < 65520.0F)) {
    rounded = std::isnan(value) ? value : std::numeric_limits<float>::infinity();
  } else if (magnitude < 0x1p-14F) {
    // Subnormal f16 values are multiples of 2^-24, which is the spacing of floats in [0.5, 1).
    rounded = (magnitude + 0.5F) - 0.5F;
  } else {
    const auto bits = std::bit_cast<std::uint32_t>(magnitude);
    const std::uint32_t odd = (bits >> 13) & 1;
    rounded = std::bit_cast<float>((bits + 0xFFF + odd) & ~std::uint32_t{0x1FFF});
  }
  return std::copysign(rounded, value);
}

}  // namespace llama
