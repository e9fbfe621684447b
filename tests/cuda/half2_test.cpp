// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/half2.hpp>

#include "support/fp16_oracle.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

namespace kvtilt::cuda {
namespace {

bool is_nan(std::uint16_t bits) { return (bits & 0x7fffu) > 0x7c00u; }
bool is_infinite(std::uint16_t bits) { return (bits & 0x7fffu) == 0x7c00u; }

std::uint32_t pair(std::uint32_t low, std::uint32_t high) { return low | high << 16; }

/// Maps every NaN to 0x7e00: its bits are not part of the contract.
std::uint16_t one_nan(std::uint16_t bits) { return is_nan(bits) ? std::uint16_t{0x7e00} : bits; }

/// Infinity, NaN and the sign of zero by the rules of IEEE 754, all else by exact integers.
std::uint16_t expected_product(std::uint16_t a, std::uint16_t b) {
  const std::uint16_t sign = static_cast<std::uint16_t>((a ^ b) & 0x8000u);
  const bool zero = (a & 0x7fffu) == 0 || (b & 0x7fffu) == 0;
  if (is_nan(a) || is_nan(b)) return 0x7e00;
  if (is_infinite(a) || is_infinite(b))
    return zero ? std::uint16_t{0x7e00} : static_cast<std::uint16_t>(sign | 0x7c00u);
  const test::Wide product =
      test::absolute(test::Wide{test::fp16_to_units(a)} * test::fp16_to_units(b));
  return static_cast<std::uint16_t>(sign | test::nearest_fp16(product, test::Wide{1} << 24));
}

TEST(Half2, ReadsEachHalfExactly) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const std::uint32_t other = bits * 0x9e37u & 0xffffu;
    const float low = low_half(pair(bits, other));
    const float high = high_half(pair(other, bits));
    if (is_nan(static_cast<std::uint16_t>(bits))) {
      EXPECT_TRUE(low != low && high != high);
      continue;
    }
    const std::uint32_t expected =
        bit_cast<std::uint32_t>(to_float(F16{static_cast<std::uint16_t>(bits)}));
    EXPECT_EQ(bit_cast<std::uint32_t>(low), expected);
    EXPECT_EQ(bit_cast<std::uint32_t>(high), expected);
    if (is_infinite(static_cast<std::uint16_t>(bits))) continue;
    EXPECT_EQ(static_cast<double>(low) * 0x1p24,
              static_cast<double>(test::fp16_to_units(static_cast<std::uint16_t>(bits))));
  }
}

void expect_product(std::uint16_t a, std::uint16_t b) {
  const std::uint16_t expected = expected_product(a, b);
  const std::uint32_t low = multiply_halves(pair(a, 0x3c00), pair(b, 0x4000));
  const std::uint32_t high = multiply_halves(pair(0x3c00, a), pair(0x4000, b));
  EXPECT_EQ(one_nan(static_cast<std::uint16_t>(low)), expected) << std::hex << a << " * " << b;
  EXPECT_EQ(one_nan(static_cast<std::uint16_t>(high >> 16)), expected)
      << std::hex << a << " * " << b;
  EXPECT_EQ(low >> 16, 0x4000u) << "halves are apart";
  EXPECT_EQ(high & 0xffffu, 0x4000u);
}

TEST(Half2, MultipliesToTheNearest) {
  // Zeros, subnormals and their upper end, one and its neighbours, the largest, infinity, NaN.
  const std::uint16_t special[] = {0x0000, 0x0001, 0x0002, 0x0003, 0x01ff, 0x0200, 0x03ff,
                                   0x0400, 0x0401, 0x0801, 0x1401, 0x2c00, 0x37ff, 0x3800,
                                   0x3801, 0x3bff, 0x3c00, 0x3c01, 0x3e00, 0x4000, 0x4bff,
                                   0x5800, 0x5bff, 0x7800, 0x7bff, 0x7c00, 0x7e00};
  for (const std::uint16_t a : special)
    for (const std::uint16_t b : special)
      for (const int signs : {0, 1, 2, 3})
        expect_product(static_cast<std::uint16_t>(a | (signs % 2 != 0 ? 0x8000 : 0)),
                       static_cast<std::uint16_t>(b | (signs / 2 != 0 ? 0x8000 : 0)));
  test::Random random(1);
  for (int i = 0; i < 50000; ++i)
    expect_product(static_cast<std::uint16_t>(random.below(0x10000)),
                   static_cast<std::uint16_t>(random.below(0x10000)));
}

/// Codes times a scale, where a code is a subnormal half: as the kernels decode.
TEST(Half2, TurnsCodesIntoNumbers) {
  for (std::uint16_t code = 0; code < 256; ++code)
    for (std::uint16_t scale = 0x0400; scale < 0x7c00;
         scale = static_cast<std::uint16_t>(scale + 251))
      expect_product(code, scale);
}

/// Skips sums of zero, whose sign is not part of the contract.
void expect_fma(std::uint16_t a, std::uint16_t b, std::uint16_t c) {
  const test::Wide product = test::Wide{test::fp16_to_units(a)} * test::fp16_to_units(b);
  const test::Wide sum = product + (test::Wide{test::fp16_to_units(c)} << 24);
  if (sum == 0) return;
  const std::uint32_t expected =
      test::nearest_fp16(test::absolute(sum), test::Wide{1} << 24) | (sum < 0 ? 0x8000u : 0u);
  EXPECT_EQ(fma_halves(pair(a, 0x3c00), pair(b, 0x3c00), pair(c, 0x3c00)), pair(expected, 0x4000))
      << std::hex << a << " * " << b << " + " << c;
  EXPECT_EQ(fma_halves(pair(0x3c00, a), pair(0x3c00, b), pair(0x3c00, c)), pair(0x4000, expected));
}

TEST(Half2, FusesProductAndSum) {
  test::Random random(3);
  const auto any = [&] {
    return static_cast<std::uint16_t>(random.below(0x7c00) | random.below(2) << 15);
  };
  for (int i = 0; i < 50000; ++i) {
    const std::uint16_t a = any();
    const std::uint16_t b = any();
    expect_fma(a, b, any());
    // Sums that nearly cancel, and sums halfway between two halves.
    const std::uint32_t product = multiply_halves(a, b) & 0xffffu;
    if (is_infinite(static_cast<std::uint16_t>(product))) continue;
    expect_fma(a, b, static_cast<std::uint16_t>(product ^ 0x8000u));
    expect_fma(a, 0x1000, static_cast<std::uint16_t>(a & 0xfffeu));
  }
  expect_fma(0x0001, 0x0001, 0x3c00);  // the product is far below the last bit
  expect_fma(0x7bff, 0x7bff, 0xfbff);
  expect_fma(0x3c00, 0x1000, 0x3c00);               // halfway to the next: rounds to even
  expect_fma(0x3c01, 0x1000, 0x3c00);               // a little more: rounds up
  for (std::uint16_t code = 0; code < 256; ++code)  // as kernels decode
    expect_fma(static_cast<std::uint16_t>(to_f16(code).bits), any(), any());
}

TEST(Half2, PicksTheSmallerOfEachHalf) {
  test::Random random(4);
  for (int i = 0; i < 10000; ++i) {
    const std::uint16_t a = static_cast<std::uint16_t>(random.below(0x10000));
    const std::uint16_t b = static_cast<std::uint16_t>(random.below(0x10000));
    if (is_nan(a) || is_nan(b) || (a | b) == 0x8000) continue;
    const std::uint16_t expected = test::fp16_to_units(a) < test::fp16_to_units(b) ? a : b;
    if (is_infinite(a) || is_infinite(b)) continue;
    EXPECT_EQ(min_halves(pair(a, b), pair(b, a)), pair(expected, expected));
  }
  EXPECT_EQ(min_halves(pair(0x7c00, 0xfbff), 0x7bff7bffu), pair(0x7bff, 0xfbff));
}

TEST(Half2, PicksTheLargerMagnitude) {
  test::Random random(5);
  for (int i = 0; i < 20000; ++i) {
    const std::uint16_t a = static_cast<std::uint16_t>(random.below(0x8000));
    const std::uint16_t b = static_cast<std::uint16_t>(random.below(0x10000));
    const std::uint16_t larger = std::max<std::uint16_t>(a, b & 0x7fff);
    const std::uint16_t expected = larger > 0x7c00 ? 0x7fff : larger;
    EXPECT_EQ(max_magnitudes(pair(a, 5), pair(b, 0x8007)), pair(expected, 7));
    EXPECT_EQ(max_magnitudes(pair(5, a), pair(0x8007, b)), pair(7, expected));
  }
}

TEST(Half2, PacksToTheNearest) {
  const auto expect_packed = [](float x) {
    const std::uint16_t expected = test::nearest_fp16_to_float(bit_cast<std::uint32_t>(x));
    EXPECT_EQ(pack_halves(x, 1.0f), pair(expected, 0x3c00)) << x;
    EXPECT_EQ(pack_halves(1.0f, x), pair(0x3c00, expected)) << x;
  };
  for (const float x : {0.0f, -0.0f, 1.0f, -1.0f, 65504.0f, 65519.9f, 65520.0f, -65520.0f, 1e30f,
                        0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 0x1p-26f, 0x1.ffcp-15f, 2049.0f,
                        2051.0f, 0x1.002p0f, 0x1.006p0f, 0x1.001ffep0f})
    expect_packed(x);
  test::Random random(2);
  for (int i = 0; i < 50000; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random.next());
    const std::uint32_t exponent = 96 + static_cast<std::uint32_t>(random.below(50));
    expect_packed(bit_cast<float>((bits & 0x807fffffu) | exponent << 23));
  }
}

TEST(Half2, BytesOfTwoRegistersInAnyOrder) {
  EXPECT_EQ(join_low(0x12345678u, 0x9abcdef0u), 0xdef05678u);
  EXPECT_EQ(join_high(0x12345678u, 0x9abcdef0u), 0x9abc1234u);
  EXPECT_EQ(permute_bytes(0x33221100u, 0x77665544u, 0x7035u), 0x77003355u);
}

}  // namespace
}  // namespace kvtilt::cuda
