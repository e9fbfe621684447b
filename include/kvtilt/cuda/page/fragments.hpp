// SPDX-License-Identifier: MIT
/// From packed words to operands of the tensor cores. Registers of quantized tensors hold fp16
/// subnormals, codes times 2^-24 times a power of two that depends on the place alone: one AND per
/// register, no conversion. Whoever uses them takes the powers of two out again.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// 16 bytes: what one lane loads at a time.
struct alignas(16) Words {
  std::uint32_t word[4];
};

KVTILT_HD inline Words load_words(const std::byte* from) {
  return *reinterpret_cast<const Words*>(from);
}

/// Places that scale a code of a plane of this width: an element in an odd register (the odd outer
/// neighbour) counts 2^outer_shift as much, one in R2 or R3 2^inner_shift.
KVTILT_HD constexpr int outer_shift(int width) {
  return width == 4 || width == 2 ? 4 : width == 1 ? 2 : 0;
}
KVTILT_HD constexpr int inner_shift(int width) { return width == 2 ? 2 : width == 1 ? 1 : 0; }

/// Tiles in one Words.
KVTILT_HD constexpr int tiles_in_words(int width) { return 16 / width; }

/// Bytes 1 and 3 of a word, each in the low byte of its half.
KVTILT_HD inline std::uint32_t odd_bytes(std::uint32_t word) {
  return permute_bytes(word, 0, 0x4341);
}

/// Registers of tile `tile` of the Words that hold it: subnormals below 16 bits, the halves
/// themselves at 16. `tile` must be a constant once loops are unrolled.
template <int Width>
KVTILT_HD inline void expand_tile(const Words& words, int tile, std::uint32_t (&a)[4]) {
  if constexpr (Width == 16) {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) a[reg] = words.word[reg];
  } else if constexpr (Width == 8) {
    KVTILT_DEVICE_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      a[2 * pair] = words.word[2 * tile + pair] & 0x00ff00ffu;
      a[2 * pair + 1] = odd_bytes(words.word[2 * tile + pair]);
    }
  } else if constexpr (Width == 4) {
    const std::uint32_t low = words.word[tile];
    const std::uint32_t high = low >> 8;
    a[0] = low & 0x000f000fu;
    a[1] = low & 0x00f000f0u;
    a[2] = high & 0x000f000fu;
    a[3] = high & 0x00f000f0u;
  } else if constexpr (Width == 2) {
    const std::uint32_t bits = words.word[tile / 2] >> (8 * (tile % 2));
    a[0] = bits & 0x00030003u;
    a[2] = bits & 0x000c000cu;
    a[1] = bits & 0x00300030u;
    a[3] = bits & 0x00c000c0u;
  } else {
    static_assert(Width == 1);
    const std::uint32_t bits = words.word[tile / 4] >> (4 * (tile % 4));
    a[0] = bits & 0x00010001u;
    a[2] = bits & 0x00020002u;
    a[1] = bits & 0x00040004u;
    a[3] = bits & 0x00080008u;
  }
}

/// Codes to values in fp16: z + s code with one rounding. What that would make infinite becomes 65504,
/// the largest that can have been stored: a scale is rounded up, so the last code may decode to 2^-10
/// of the range more.
KVTILT_HD inline std::uint32_t decode_value(std::uint32_t code, std::uint32_t scale,
                                            std::uint32_t minimum) {
  return min_halves(fma_halves(code, scale, minimum), 0x7bff7bffu);
}

/// Bits of the fp16 2^exponent, for -24 to 15.
KVTILT_HD constexpr std::uint32_t half_power(int exponent) {
  return exponent >= -14 ? static_cast<std::uint32_t>(exponent + 15) << 10 : 1u << (exponent + 24);
}

/// 2^exponent, for -126 to 127.
KVTILT_HD constexpr float float_power(int exponent) {
  return bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

}  // namespace kvtilt::cuda
