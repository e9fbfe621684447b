// SPDX-License-Identifier: MIT
#include <kvtilt/cache/input_check.hpp>

#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt {
namespace {

using test::Rows;

template <class T>
T from_bits(std::uint32_t bits);
template <>
float from_bits<float>(std::uint32_t bits) {
  return bit_cast<float>(bits);
}
template <>
F16 from_bits<F16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}
template <>
BF16 from_bits<BF16>(std::uint32_t bits) {
  return {static_cast<std::uint16_t>(bits)};
}

/// Whether a single odd element among zeros is found; checks the reported place.
template <class T>
bool refused(T odd, float limit) {
  Rows<T> rows(3, 2, 8);
  rows.at(1, 1, 5) = odd;
  BadElement bad{-1, -1, -1, 0.0f};
  EXPECT_FALSE(find_bad_element(rows.view(), 0, limit, bad));
  const bool found = find_bad_element(rows.view(), 1, limit, bad);
  if (found) {
    EXPECT_EQ(bad.token, 1);
    EXPECT_EQ(bad.head, 1);
    EXPECT_EQ(bad.channel, 5);
  }
  return found;
}

TEST(InputCheck, FindsNaNAndInfinityInEveryType) {
  for (const std::uint32_t bits :
       {0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fc00000u, 0xffffffffu, 0x7fffffffu})
    EXPECT_TRUE(refused(from_bits<float>(bits), f16_max)) << std::hex << bits;
  for (const std::uint32_t bits : {0x7c00u, 0xfc00u, 0x7c01u, 0x7e00u, 0xffffu})
    EXPECT_TRUE(refused(from_bits<F16>(bits), f16_max)) << std::hex << bits;
  for (const std::uint32_t bits : {0x7f80u, 0xff80u, 0x7f81u, 0x7fc0u, 0xffffu})
    EXPECT_TRUE(refused(from_bits<BF16>(bits), f16_max)) << std::hex << bits;
}

TEST(InputCheck, LimitsAreExact) {
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_FALSE(refused(sign * 65504.0f, f16_max));
    EXPECT_TRUE(refused(sign * 65504.004f, f16_max));
    EXPECT_TRUE(refused(sign * 65505.0f, f16_max));
    EXPECT_TRUE(refused(sign * 3.4e38f, f16_max));
    EXPECT_FALSE(refused(sign * 32752.0f, 32752.0f));
    EXPECT_TRUE(refused(sign * 32753.0f, 32752.0f));
    EXPECT_FALSE(refused(to_f16(sign * 65504.0f), f16_max));
    EXPECT_FALSE(refused(to_f16(sign * 32752.0f), 32752.0f));
    EXPECT_TRUE(refused(to_f16(sign * 32768.0f), 32752.0f));
    EXPECT_FALSE(refused(to_bf16(sign * 65280.0f), f16_max));
    EXPECT_TRUE(refused(to_bf16(sign * 65536.0f), f16_max));
    EXPECT_FALSE(refused(to_bf16(sign * 32640.0f), 32752.0f));
    EXPECT_TRUE(refused(to_bf16(sign * 32768.0f), 32752.0f));
  }
}

TEST(InputCheck, SmallAndZeroPass) {
  for (const std::uint32_t bits : {0u, 0x80000000u, 1u, 0x80000001u, 0x00800000u, 0x33000000u})
    EXPECT_FALSE(refused(from_bits<float>(bits), f16_max));
  EXPECT_FALSE(refused(F16{1}, f16_max));
  EXPECT_FALSE(refused(F16{0x8000}, f16_max));
  EXPECT_FALSE(refused(BF16{1}, f16_max));
}

TEST(InputCheck, TheFirstBadElementIsNamedWithItsValue) {
  Rows<float> rows(4, 1, 40);
  rows.at(2, 0, 38) = f16_max;  // the largest value allowed, so not the element to name
  rows.at(2, 0, 39) = 1e6f;
  rows.at(3, 0, 0) = 2e6f;
  BadElement bad{};
  ASSERT_TRUE(find_bad_element(rows.view(), 0, f16_max, bad));
  EXPECT_EQ(bad.token, 2);
  EXPECT_EQ(bad.channel, 39);
  EXPECT_EQ(bad.value, 1e6f);
}

TEST(InputCheck, OnlyElementsOfTheViewAreLookedAt) {
  Rows<float> rows(4, 4, 8);
  for (float& x : rows.data) x = 1e9f;
  for (const int token : {0, 2})
    for (int c = 0; c < 8; ++c) rows.at(token, 1, c) = 1.0f;
  const TensorView view =
      TensorView(&rows.at(2, 1, 0), 2, 1, 8).with_strides(-2 * 32, 0);  // tokens 2, 0
  BadElement bad{};
  EXPECT_FALSE(find_bad_element(view, 0, f16_max, bad));
  rows.at(0, 1, 7) = -1e9f;
  ASSERT_TRUE(find_bad_element(view, 0, f16_max, bad));
  EXPECT_EQ(bad.token, 1);
  EXPECT_EQ(bad.channel, 7);
  EXPECT_EQ(element(view, 1, 0, 7), -1e9f);
}

}  // namespace
}  // namespace kvtilt
