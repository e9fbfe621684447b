// SPDX-License-Identifier: MIT
// 16-bit floats for checkpoints and for the baseline cache. Deliberately not kvtilt's own types:
// the baseline that judges the library must not share its rounding code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace llama {

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

inline float f16_to_float(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  float magnitude = 0;
  if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity()
                              : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

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
