// SPDX-License-Identifier: MIT
/// The arithmetic of quant/ in few instructions: the same bits, whatever flags the device compiler
/// gets (every rounding is written out in PTX). On the host the specification itself runs.
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

KVTILT_HD inline float subtract(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a - b;
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

/// 1.5 * 2^23: floats beside it are whole numbers, and their low bits those numbers.
inline constexpr float rounder = 12582912.0f;

/// Low 16 bits: nearest integer to t, half to even, |t| < 2^15. The rest is not said.
KVTILT_HD inline std::uint32_t rounded_bits(float t) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(t), "f"(rounder));
  return bit_cast<std::uint32_t>(result);
#else
  const bool negative = (bit_cast<std::uint32_t>(t) >> 31) != 0;
  const int magnitude = round_half_even(bit_cast<float>(bit_cast<std::uint32_t>(t) & 0x7fffffffu));
  return static_cast<std::uint32_t>(negative ? -magnitude : magnitude);
#endif
}

/// The low bytes of four words.
KVTILT_HD inline std::uint32_t join_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                          std::uint32_t d) {
  return permute_bytes(permute_bytes(a, b, 0x0040), permute_bytes(c, d, 0x0040), 0x5410);
}

/// Two signed 16-bit integers clamped to 0..highest.
KVTILT_HD inline std::uint32_t clamp_pair(std::uint32_t pair, int highest) {
#if defined(__CUDA_ARCH__)
  return __vimin_s16x2_relu(pair, static_cast<std::uint32_t>(highest) * 0x10001u);
#else
  const auto clamped = [highest](std::uint32_t bits) {
    const int value = static_cast<std::int16_t>(static_cast<std::uint16_t>(bits));
    return static_cast<std::uint32_t>(value < 0 ? 0 : value > highest ? highest : value);
  };
  return clamped(pair) | clamped(pair >> 16) << 16;
#endif
}

/// sum + a[0] b[0] + a[1] b[1] + a[2] b[2] + a[3] b[3], unsigned bytes.
KVTILT_HD inline std::uint32_t dot_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(a, b, sum);
#else
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 0xffu) * (b >> i & 0xffu);
  return sum;
#endif
}

/// sum + the dot product of four unsigned 16-bit integers with four unsigned bytes.
KVTILT_HD inline std::uint32_t dot_words(std::uint32_t first, std::uint32_t second,
                                         std::uint32_t bytes, std::uint32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp2a_hi(second, bytes, __dp2a_lo(first, bytes, sum));
#else
  return sum + (first & 0xffffu) * (bytes & 0xffu) + (first >> 16) * (bytes >> 8 & 0xffu) +
         (second & 0xffffu) * (bytes >> 16 & 0xffu) + (second >> 16) * (bytes >> 24);
#endif
}

/// range_affine() of affine.hpp: the nearest fp16 of range / n is the smallest scale or the one
/// below it.
KVTILT_HD inline Affine fast_range_affine(F16 low, F16 high, int bits) {
#if defined(__CUDA_ARCH__)
  const F16 minimum = low.bits == 0x8000u ? F16{} : low;
  const float range = subtract(widen(high), widen(minimum));
  const float levels = static_cast<float>(max_code(bits));
  F16 scale = nearest_half(multiply(range, 1.0f / levels));
  if (multiply(widen(scale), levels) < range) ++scale.bits;
  return {scale, minimum};
#else
  return range_affine(low, high, bits);
#endif
}

/// apply_min_mse() of min_mse.hpp, except that candidate 0 needs no exception: it changes nothing.
KVTILT_HD inline Affine fast_apply_min_mse(Affine range, float rise, float shrink) {
  const float scale = widen(range.scale);
  F16 minimum = nearest_half(widen(range.minimum) + multiply(scale, rise));  // exact product
  if (minimum.bits == 0x8000u) minimum = F16{};
  return {nearest_half(multiply(scale, shrink)), minimum};
}

/// A candidate of the MinMse search as two multiply-adds. With u a whole number of units,
///
///     code = rint(n * saturate(u * slope + start))
///
/// is clamp((y*m + 2^14) >> 15, 0, n): what is rounded lies a quarter of the last place of y*m
/// above it, so ties go up and nothing else is near one (group_math_test tries every u).
struct alignas(8) CandidateLine {
  float slope;
  float start;
};

KVTILT_HD constexpr CandidateLine candidate_line(const MinMseCandidate& candidate, int bits) {
  const double unit = 1.0 / (32768.0 * max_code(bits));
  return {static_cast<float>(candidate.multiplier * unit),
          static_cast<float>((0.25 - static_cast<double>(candidate.offset) * candidate.multiplier) *
                             unit)};
}

/// All candidates of a width, for kernels that learn the width at run time.
struct SearchGrid {
  CandidateLine lines[min_mse_candidates] = {};
  std::uint32_t steps[min_mse_candidates] = {};
  std::uint32_t offsets[min_mse_candidates] = {};
  float rises[min_mse_candidates] = {};
  float shrinks[min_mse_candidates] = {};

  KVTILT_HD constexpr explicit SearchGrid(int bits) {
    for (int k = 0; k < min_mse_candidates; ++k) {
      const MinMseCandidate candidate = min_mse_candidate(bits, k);
      lines[k] = candidate_line(candidate, bits);
      steps[k] = static_cast<std::uint32_t>(candidate.step);
      offsets[k] = static_cast<std::uint32_t>(candidate.offset);
      rises[k] = candidate.rise;
      shrinks[k] = candidate.shrink;
    }
  }
};

/// Of 2 to 5 bits.
KVTILT_HD inline const SearchGrid& search_grid(int bits) {
  static constexpr SearchGrid grids[] = {SearchGrid(2), SearchGrid(3), SearchGrid(4),
                                         SearchGrid(5)};
  return grids[bits - 2];
}

/// Low 16 bits: the code.
KVTILT_HD inline std::uint32_t candidate_code_bits(float units, CandidateLine line, float levels) {
#if defined(__CUDA_ARCH__)
  float part;
  float result;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(part) : "f"(units), "f"(line.slope), "f"(line.start));
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(part), "f"(levels), "f"(rounder));
  return bit_cast<std::uint32_t>(result);
#else
  const float part = std::fma(units, line.slope, line.start);
  return bit_cast<std::uint32_t>(std::fma(part < 0.0f   ? 0.0f
                                          : part > 1.0f ? 1.0f
                                                        : part,
                                          levels, rounder));
#endif
}

}  // namespace kvtilt::cuda
