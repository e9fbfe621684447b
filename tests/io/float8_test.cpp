// SPDX-License-Identifier: MIT
#include <kvtilt/io/float8.hpp>

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace kvtilt {
namespace {

/// The value that the specification gives to sign, exponent and mantissa.
double value_of(int byte, int mantissa_bits, int bias) {
  const int mantissa = byte & ((1 << mantissa_bits) - 1);
  const int exponent = (byte & 127) >> mantissa_bits;
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return byte >= 128 ? -magnitude : magnitude;
}

bool is_nan(float x) { return (std::bit_cast<std::uint32_t>(x) & 0x7fffffffu) > 0x7f800000u; }

TEST(Float8, ReadsEveryE4M3) {
  for (int byte = 0; byte < 256; ++byte) {
    const float x = to_float(F8E4M3{static_cast<std::uint8_t>(byte)});
    EXPECT_EQ(is_nan(x), byte == 0x7f || byte == 0xff) << byte;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(x) >> 31, byte >> 7) << byte;
    if (!is_nan(x)) {
      EXPECT_EQ(x, value_of(byte, 3, 7)) << byte;
    }
  }
  EXPECT_EQ(to_float(F8E4M3{0x7e}), 448.0f);
  EXPECT_EQ(to_float(F8E4M3{0x01}), 0x1p-9f);
}

TEST(Float8, ReadsEveryE5M2) {
  for (int byte = 0; byte < 256; ++byte) {
    const float x = to_float(F8E5M2{static_cast<std::uint8_t>(byte)});
    EXPECT_EQ(is_nan(x), (byte & 127) > 0x7c) << byte;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(x) >> 31, byte >> 7) << byte;
    if ((byte & 127) < 0x7c) {
      EXPECT_EQ(x, value_of(byte, 2, 15)) << byte;
    }
  }
  EXPECT_EQ(std::bit_cast<std::uint32_t>(to_float(F8E5M2{0x7c})), 0x7f800000u);
  EXPECT_EQ(to_float(F8E5M2{0x7b}), 57344.0f);
}

static_assert(to_float(F8E4M3{0x38}) == 1.0f && to_float(F8E5M2{0xbc}) == -1.0f);

}  // namespace
}  // namespace kvtilt
