// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/group_math.hpp>

#include <gtest/gtest.h>

#include <algorithm>

namespace kvtilt::cuda {
namespace {

TEST(GroupMath, CandidateLinesGiveEveryCodeOfTheSearch) {
  for (int bits = 2; bits <= 5; ++bits)
    for (int index = 0; index < min_mse_candidates; ++index) {
      const MinMseCandidate candidate = min_mse_candidate(bits, index);
      const CandidateLine line = search_grid(bits).lines[index];
      for (int units = 0; units <= max_code(bits) << (13 - bits); ++units) {
        const int y = units - candidate.offset;
        const int code =
            std::clamp((y * candidate.multiplier + (1 << 14)) >> 15, 0, max_code(bits));
        const std::uint32_t found = candidate_code_bits(static_cast<float>(units), line,
                                                        static_cast<float>(max_code(bits)));
        ASSERT_EQ(found & 0xffffu, static_cast<std::uint32_t>(code))
            << bits << " bits, candidate " << index << ", u = " << units;
      }
    }
}

/// What a device computes, with the operators of the host.
Affine device_range_affine(F16 low, F16 high, int bits) {
  const F16 minimum = low.bits == 0x8000u ? F16{} : low;
  const float range = to_float(high) - to_float(minimum);
  const float levels = static_cast<float>(max_code(bits));
  F16 scale = to_f16(range * (1.0f / levels));
  if (to_float(scale) * levels < range) ++scale.bits;
  return {scale, minimum};
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
        ASSERT_EQ(device_range_affine(low, high, bits), range_affine(low, high, bits))
            << bits << " bits, " << a << ", " << b;
      }
    }
}

TEST(GroupMath, WordsOfPairsAndBytes) {
  EXPECT_EQ(join_bytes(0x111u, 0x222u, 0x333u, 0x444u), 0x44332211u);
  EXPECT_EQ(clamp_pair(0xffff0020u, 15), 0x0000000fu);
  EXPECT_EQ(dot_bytes(0x04030201u, 0xff010203u, 5u), 5u + 3 + 4 + 3 + 4 * 255);
  EXPECT_EQ(dot_words(0x00020001u, 0x20000003u, 0x1f030201u, 7u), 7u + 1 + 4 + 9 + 0x2000u * 31);
}

}  // namespace
}  // namespace kvtilt::cuda
