// SPDX-License-Identifier: MIT
/// The arithmetic of quant/ in few instructions, with the same results whatever flags the device
/// compiler gets (PTX states every rounding). The host runs the same formulas and differs in single
/// operations only, so tests there cover them.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/quant/affine.hpp>
#include <kvtilt/quant/min_mse.hpp>

#include <cstdint>

#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

namespace kvtilt::cuda {

KVTILT_HD inline float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a * b;
#endif
}

KVTILT_HD inline float plus(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a + b;
#endif
}

KVTILT_HD inline float subtract(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a - b;
#endif
}

KVTILT_HD inline float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
  return result;
#else
  return std::fma(a, b, c);
#endif
}

KVTILT_HD inline float smaller(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("min.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return b < a ? b : a;
#endif
}

KVTILT_HD inline float absolute(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("abs.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return bit_cast<float>(bit_cast<std::uint32_t>(x) & 0x7fffffffu);
#endif
}

KVTILT_HD inline F16 nearest_half(float x) {
#if defined(__CUDA_ARCH__)
  F16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  return to_f16(x);
#endif
}

KVTILT_HD inline float widen(F16 half) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half.bits));
  return result;
#else
  return to_float(half);
#endif
}

/// 1/s correctly rounded for an fp16 s > 0; 0 for s = 0.
KVTILT_HD inline float inverse_of(F16 scale) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.rn.f32 %0, %1;" : "=f"(result) : "f"(widen(scale)));
  return scale.bits == 0 ? 0.0f : result;
#else
  return reciprocal(scale);
#endif
}

/// 1.5 * 2^23: for |t| < 2^15, the float sum t + rounder is rint(t) + rounder (half to even), and
/// its low 16 bits are those of the integer rint(t).
inline constexpr float rounder = 12582912.0f;

/// sum + a[0] b[0] + a[1] b[1] + a[2] b[2] + a[3] b[3] of unsigned bytes.
KVTILT_HD inline std::uint32_t dot_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(a, b, sum);
#else
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 0xffu) * (b >> i & 0xffu);
  return sum;
#endif
}

/// sum + the dot product of four unsigned 16-bit integers (first, second) with four unsigned bytes.
KVTILT_HD inline std::uint32_t dot_words(std::uint32_t first, std::uint32_t second,
                                         std::uint32_t bytes, std::uint32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp2a_hi(second, bytes, __dp2a_lo(first, bytes, sum));
#else
  return sum + (first & 0xffffu) * (bytes & 0xffu) + (first >> 16) * (bytes >> 8 & 0xffu) +
         (second & 0xffffu) * (bytes >> 16 & 0xffu) + (second >> 16) * (bytes >> 24);
#endif
}

/// range_affine() of affine.hpp. The fp16 nearest to range / n is the scale or the next fp16 below
/// it, as long as the quotient's error is below half the distance of two fp16, 2^-12 of it.
///
/// inverse  1 / n, approximately
KVTILT_HD inline Affine fast_range_affine(F16 low, F16 high, int bits, float inverse) {
  const F16 minimum = low.bits == 0x8000u ? F16{} : low;
  const float range = absolute(subtract(widen(high), widen(minimum)));  // of zeros it may be -0
  F16 scale = nearest_half(multiply(range, inverse));
  if (multiply(widen(scale), static_cast<float>(max_code(bits))) < range) ++scale.bits;
  return {scale, minimum};
}
KVTILT_HD inline Affine fast_range_affine(F16 low, F16 high, int bits) {
  return fast_range_affine(low, high, bits, reciprocal_fast(static_cast<float>(max_code(bits))));
}

/// apply_min_mse() of min_mse.hpp. Candidate 0 may be applied too: it changes nothing.
KVTILT_HD inline Affine fast_apply_min_mse(Affine range, float rise, float shrink) {
  const float scale = widen(range.scale);
  F16 minimum = nearest_half(widen(range.minimum) + multiply(scale, rise));  // exact product
  if (minimum.bits == 0x8000u) minimum = F16{};
  return {nearest_half(multiply(scale, shrink)), minimum};
}

/// The smallest fp16 subnormal. The bits of the fp16 code * code_unit are the code itself, so the
/// conversion of two floats to fp16 rounds them to codes, half to even, and packs them.
inline constexpr float code_unit = 0x1p-24f;

/// Codes of two floats t * code_unit: rint(t) for t < 1024, 0 if negative, at least 1024 for larger
/// t. No -0: nothing says that a device takes it for negative, so the host does not either.
KVTILT_HD inline std::uint32_t code_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return pack_halves(low < 0.0f ? 0.0f : low, high < 0.0f ? 0.0f : high);
#endif
}

/// Scale and minimum of a group in the form that encoding uses.
struct alignas(8) GroupEncoder {
  float shift;    ///< minus the minimum; +0, not -0, so that x + shift is never -0
  float inverse;  ///< of the scale, in code units

  GroupEncoder() = default;
  KVTILT_HD explicit GroupEncoder(Affine affine)
      : shift(subtract(0.0f, widen(affine.minimum))),
        inverse(multiply(inverse_of(affine.scale), code_unit)) {}
  /// The code of x, not rounded, times code_unit.
  [[nodiscard]] KVTILT_HD float units(float x) const { return multiply(plus(x, shift), inverse); }
};

/// The grid of the MinMse search (min_mse.hpp). A candidate k = 3i + j costs a multiply-add: with u
/// a whole number,
///
///     code = rint(min(u, top(j)) * slope(i + j) + start(i, i + j)), 0 if negative, in code units
///
/// is clamp((y*m + 2^14) >> 15, 0, n). The rounded number is (y*m + 1/4) / 2^15: it has fewer than
/// 24 bits, so it is exact; the 1/4 excludes ties and rounds those of y*m up. Code n is reached
/// where the candidate's range ends, which only j moves. group_math_test tries every u.
struct SearchGrid {
  float slopes[5] = {};
  float rises[min_mse_candidates] = {};
  float shrinks[min_mse_candidates] = {};

  KVTILT_HD constexpr explicit SearchGrid(int bits) {
    for (int k = 0; k < min_mse_candidates; ++k) {
      const MinMseCandidate candidate = min_mse_candidate(bits, k);
      slopes[k / 3 + k % 3] = static_cast<float>(candidate.multiplier) * 0x1p-15f * code_unit;
      rises[k] = candidate.rise;
      shrinks[k] = candidate.shrink;
    }
  }
};

/// The grid for 2 to 5 bits.
KVTILT_HD inline const SearchGrid& search_grid(int bits) {
  static constexpr SearchGrid grids[] = {SearchGrid(2), SearchGrid(3), SearchGrid(4),
                                         SearchGrid(5)};
  return grids[bits - 2];
}

/// The integers of a grid, in units of u.
struct SearchSteps {
  int levels;
  int whole;  ///< step of i = j = 0
  int pull;   ///< what a step loses for each increment of i or j

  KVTILT_HD constexpr explicit SearchSteps(int bits)
      : levels(max_code(bits)), whole(1 << (13 - bits)), pull(0) {
    pull = (bits == 2 ? 7 : bits == 3 ? 3 : 1) << (7 - bits);
  }
  [[nodiscard]] KVTILT_HD constexpr int step(int sum) const { return whole - sum * pull; }
  [[nodiscard]] KVTILT_HD constexpr int offset(int i) const { return levels * i * pull; }
  [[nodiscard]] KVTILT_HD constexpr float top(int j) const {
    return static_cast<float>(levels * step(j));
  }
  [[nodiscard]] KVTILT_HD constexpr float start(int i, float slope) const {
    return (0.25f * 0x1p-15f * code_unit) - static_cast<float>(offset(i)) * slope;
  }
};

}  // namespace kvtilt::cuda
