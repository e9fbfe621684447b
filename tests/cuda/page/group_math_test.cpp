// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/group_math.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace kvtilt::cuda {
namespace {

TEST(GroupMath, GridsGiveEveryCodeOfTheSearch) {
  for (int bits = 2; bits <= 5; ++bits)
    for (int index = 0; index < min_mse_candidates; ++index) {
      const MinMseCandidate candidate = min_mse_candidate(bits, index);
      const SearchSteps steps(bits);
      const int i = index / 3;
      const int j = index % 3;
      EXPECT_EQ(steps.step(i + j), candidate.step);
      EXPECT_EQ(steps.offset(i), candidate.offset);
      const float slope = search_grid(bits).slopes[i + j];
      const int last = max_code(bits) << (13 - bits);
      EXPECT_EQ(steps.top(0), static_cast<float>(last));
      for (int units = 0; units <= last; ++units) {
        const int y = units - candidate.offset;
        const int code =
            std::clamp((y * candidate.multiplier + (1 << 14)) >> 15, 0, max_code(bits));
        const int within = std::min(units, max_code(bits) * steps.step(j));
        const float part = multiply_add(smaller(static_cast<float>(units), steps.top(j)), slope,
                                        steps.start(i, slope));
        ASSERT_EQ(part, std::ldexp((within - candidate.offset) * candidate.multiplier + 0.25, -39));
        ASSERT_EQ(code_pair(part, part), static_cast<std::uint32_t>(code) * 0x10001u)
            << bits << " bits, candidate " << index << ", u = " << units;
      }
    }
}

TEST(GroupMath, CodePairsAreRounded) {
  for (int code = 0; code < 1023; ++code)
    for (const float rest : {0.0f, 0.25f, 0.5f, 0.75f}) {
      const float t = static_cast<float>(code) + rest;
      const std::uint32_t nearest = static_cast<std::uint32_t>(round_half_even(t));
      EXPECT_EQ(code_pair(t * code_unit, (-t - 0.25f) * code_unit), nearest) << t;
      EXPECT_EQ(code_pair(3 * code_unit, t * code_unit), 3 | nearest << 16) << t;
    }
  EXPECT_GE(code_pair(131008.0f, 0.0f), 1024u);
}

constexpr F16 zeros[] = {{0x0000}, {0x8000}};

TEST(GroupMath, ZerosOfBothSignsHaveNoScale) {
  for (int bits = 2; bits <= 8; ++bits)
    for (const F16 low : zeros)
      for (const F16 high : zeros) EXPECT_EQ(fast_range_affine(low, high, bits), Affine{});
}

TEST(GroupMath, NothingShiftedIsANegativeZero) {
  for (std::uint32_t a = 0; a <= 0xfbffu; ++a) {
    if ((a & 0x7c00u) == 0x7c00u || a == 0x8000u) continue;
    const F16 minimum{static_cast<std::uint16_t>(a)};
    const GroupEncoder group(Affine{F16{0x1000}, minimum});
    for (const F16 x : {minimum, zeros[0], zeros[1]})
      ASSERT_NE(bit_cast<std::uint32_t>(group.units(to_float(x))), 0x80000000u) << a;
  }
  EXPECT_EQ(code_pair(-1.0f, -0.3f * code_unit), 0u);
}

TEST(GroupMath, ScalesAreTheSmallest) {
  for (int bits = 2; bits <= 8; ++bits)
    for (std::uint32_t a = 0; a < 0xfc00u; a += 37) {
      if ((a & 0x7c00u) == 0x7c00u) continue;
      for (std::uint32_t b = a % 91; b < 0xfc00u; b += 1201) {
        if ((b & 0x7c00u) == 0x7c00u) continue;
        const F16 one{static_cast<std::uint16_t>(a)};
        const F16 two{static_cast<std::uint16_t>(b)};
        const F16 low = ordered(one) < ordered(two) ? one : two;
        const F16 high = ordered(one) < ordered(two) ? two : one;
        for (const float off : {0x1p-14f, 0.0f, -0x1p-14f}) {
          const float inverse = (1.0f + off) / static_cast<float>(max_code(bits));
          ASSERT_EQ(fast_range_affine(low, high, bits, inverse), range_affine(low, high, bits))
              << bits << " bits, " << a << ", " << b << ", off by " << off;
        }
      }
    }
}

TEST(GroupMath, WordsOfPairsAndBytes) {
  EXPECT_EQ(dot_bytes(0x04030201u, 0xff010203u, 5u), 5u + 3 + 4 + 3 + 4 * 255);
  EXPECT_EQ(dot_words(0x00020001u, 0x20000003u, 0x1f030201u, 7u), 7u + 1 + 4 + 9 + 0x2000u * 31);
}

}  // namespace
}  // namespace kvtilt::cuda
