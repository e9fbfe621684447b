// SPDX-License-Identifier: MIT
/// Arithmetic on 32-bit registers of two fp16: one instruction on the GPU, scalar code with the
/// same results on the host (nearest even, subnormals kept) unless an Error is given.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/quant/affine.hpp>

#include <cmath>
#include <cstdint>

namespace kvtilt::cuda {

namespace detail {

KVTILT_HD constexpr F16 half_of(std::uint32_t pair, int index) {
  return F16{static_cast<std::uint16_t>(index == 0 ? pair : pair >> 16)};
}
KVTILT_HD constexpr std::uint32_t join_halves(F16 low, F16 high) {
  return low.bits | (static_cast<std::uint32_t>(high.bits) << 16);
}

/// a b + c with one rounding. The double sum rounds only where fp16 cannot tell; the step to float
/// cuts off and then sets the last bit (round to odd), so that only to_f16() rounds.
inline F16 fma_half(F16 a, F16 b, F16 c) {
  const double product = static_cast<double>(to_float(a)) * static_cast<double>(to_float(b));
  const double sum = product + static_cast<double>(to_float(c));
  const float near = static_cast<float>(sum);
  std::uint32_t bits = bit_cast<std::uint32_t>(near);
  const double wide = static_cast<double>(near);
  if (wide < sum || wide > sum) {
    if ((wide > sum) == (sum > 0)) --bits;  // rounded away from 0: truncate instead
    bits |= 1;
  }
  return to_f16(bit_cast<float>(bits));
}

}  // namespace detail

/// Byte i of the result is byte (selector >> 4i) % 8 of the eight bytes of a, then b.
KVTILT_HD inline std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b,
                                             std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, selector);
#else
  const std::uint64_t bytes = a | static_cast<std::uint64_t>(b) << 32;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<std::uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff)
              << (8 * i);
  return result;
#endif
}

/// (word & mask) | bits, in one instruction.
KVTILT_HD inline std::uint32_t mask_and_set(std::uint32_t word, std::uint32_t mask,
                                            std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;  // with two constants the compiler would emit two instructions
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
#else
  return (word & mask) | bits;
#endif
}

/// The low halves of two registers.
KVTILT_HD inline std::uint32_t join_low(std::uint32_t low, std::uint32_t high) {
  return permute_bytes(low, high, 0x5410);
}

/// The high halves of two registers.
KVTILT_HD inline std::uint32_t join_high(std::uint32_t low, std::uint32_t high) {
  return permute_bytes(low, high, 0x7632);
}

/// The low half as a float: exact.
KVTILT_HD inline float low_half(std::uint32_t pair) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo;}" : "=f"(result) : "r"(pair));
  return result;
#else
  return to_float(detail::half_of(pair, 0));
#endif
}

KVTILT_HD inline float high_half(std::uint32_t pair) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi;}" : "=f"(result) : "r"(pair));
  return result;
#else
  return to_float(detail::half_of(pair, 1));
#endif
}

KVTILT_HD inline std::uint32_t multiply_halves(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  return detail::join_halves(to_f16(low_half(a) * low_half(b)),
                             to_f16(high_half(a) * high_half(b)));
#endif
}

namespace detail {

KVTILT_HD constexpr F16 smaller_half(F16 a, F16 b) { return ordered(b) < ordered(a) ? b : a; }
KVTILT_HD constexpr F16 larger_half(F16 a, F16 b) { return ordered(b) > ordered(a) ? b : a; }

}  // namespace detail

/// The smaller of each half. No NaN; of +0 and -0 either may be returned.
KVTILT_HD inline std::uint32_t min_halves(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  return detail::join_halves(detail::smaller_half(detail::half_of(a, 0), detail::half_of(b, 0)),
                             detail::smaller_half(detail::half_of(a, 1), detail::half_of(b, 1)));
#endif
}

KVTILT_HD inline std::uint32_t max_halves(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  return detail::join_halves(detail::larger_half(detail::half_of(a, 0), detail::half_of(b, 0)),
                             detail::larger_half(detail::half_of(a, 1), detail::half_of(b, 1)));
#endif
}

/// The larger, as bits, of each half of a, a magnitude, and the magnitude of that of b; 0x7fff if
/// either is NaN. Works for bf16 too, but takes its magnitudes above 2^121 for NaN.
KVTILT_HD inline std::uint32_t max_magnitudes(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("{.reg .b32 m; abs.f16x2 m, %2; max.NaN.f16x2 %0, %1, m;}" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  const auto larger = [](std::uint32_t x, std::uint32_t y) {
    const std::uint32_t most = x > y ? x : y;
    return most > 0x7c00u ? 0x7fffu : most;
  };
  return larger(a & 0xffffu, b & 0x7fffu) | larger(a >> 16, b >> 16 & 0x7fffu) << 16;
#endif
}

/// a b + c with one rounding.
KVTILT_HD inline std::uint32_t fma_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return detail::join_halves(
      detail::fma_half(detail::half_of(a, 0), detail::half_of(b, 0), detail::half_of(c, 0)),
      detail::fma_half(detail::half_of(a, 1), detail::half_of(b, 1), detail::half_of(c, 1)));
#endif
}

/// Packs two floats as nearest fp16.
KVTILT_HD inline std::uint32_t pack_halves(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return detail::join_halves(to_f16(low), to_f16(high));
#endif
}

/// 2^x. Error: two units in the last place on the GPU, where subnormal results become 0.
KVTILT_HD inline float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

/// 1 / x. Error: one unit in the last place on the GPU, where subnormal results become 0. An exact
/// division would be a function call.
KVTILT_HD inline float reciprocal_fast(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

/// tanh(x). Error: 2^-21, absolute. std::tanh takes a dozen times the registers.
KVTILT_HD inline float hyperbolic_tangent(float x) {
  // 1 - 2 / (1 + e^2x): e^2x may overflow to infinity, where the quotient is 0. The error is
  // largest near x = -1: 1.8 x 2^-22.
  return 1.0f - 2.0f * reciprocal_fast(1.0f + exp2_fast(x * 2.88539008177792681f));
}

/// Packs two floats as nearest bf16.
KVTILT_HD inline std::uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return to_bf16(low).bits | static_cast<std::uint32_t>(to_bf16(high).bits) << 16;
#endif
}

}  // namespace kvtilt::cuda
