// SPDX-License-Identifier: MIT
/// Converts the 8-bit floats of checkpoints to float. The formats are those of the OCP
/// specification (Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433). In
/// integer arithmetic, as in core/half.hpp.
#pragma once

#include <kvtilt/core/half.hpp>

#include <cstdint>

namespace kvtilt {

/// Sign, 5 bits of exponent, 2 of mantissa: the upper byte of an fp16.
struct F8E5M2 {
  std::uint8_t bits = 0;
};

/// Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, and only 0x7f and 0xff are NaN.
/// Also known as e4m3fn.
struct F8E4M3 {
  std::uint8_t bits = 0;
};

/// Exact. NaN stays NaN.
constexpr float to_float(F8E5M2 x) {
  return to_float(F16{static_cast<std::uint16_t>(x.bits << 8)});
}

/// Exact. NaN stays NaN.
constexpr float to_float(F8E4M3 x) {
  const std::uint32_t sign = (x.bits & 0x80u) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7f) return bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude >= 8) return bit_cast<float>(sign | ((magnitude + (120u << 3)) << 20));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-9f;
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(subnormal));
}

}  // namespace kvtilt
