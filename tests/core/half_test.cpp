// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cpu/isa.hpp>

#include "support/float_modes.hpp"
#include "support/fp16_oracle.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <vector>

#if KVTILT_X86
#include <immintrin.h>
#elif KVTILT_ARM64
#include <arm_neon.h>
#endif

namespace kvtilt {
namespace {

using test::Wide;

constexpr int patterns = 65536;

F16 half(int bits) { return F16{static_cast<std::uint16_t>(bits)}; }
bool is_nan(F16 x) { return (x.bits & 0x7fffu) > 0x7c00u; }
bool is_finite(F16 x) { return (x.bits & 0x7c00u) != 0x7c00u; }
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// Calls `body` with the floats that decide conversions to fp16: every fp16 number and every
/// midpoint, each with eight neighbours on either side; then with samples of all exponents. Both
/// signs.
template <class Body>
void for_each_decisive_float(Body body) {
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const std::size_t index = static_cast<std::size_t>(bits);
    const std::int64_t twice = 2 * test::fp16_units()[index];
    const std::int64_t next = bits == 0x7bff ? 65536ll << 25 : 2 * test::fp16_units()[index + 1];
    for (const std::int64_t value : {twice, (twice + next) / 2}) {
      const std::uint32_t centre = test::float32_bits(test::round_to_float32(value, 1, -25));
      for (int step = -8; step <= 8; ++step) {
        const std::uint32_t near = centre + static_cast<std::uint32_t>(step);
        if (near > 0x7f800000u) continue;  // wrapped around below zero
        body(near);
        body(near | 0x80000000u);
      }
    }
  }
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 4099)
    body(static_cast<std::uint32_t>(bits));
  for (const std::uint32_t bits : {0u, 1u, 0x7fffffu, 0x800000u, 0x7f7fffffu})
    for (const std::uint32_t sign : {0u, 0x80000000u}) body(bits | sign);
}

TEST(Half, ReadsEveryF16Exactly) {
  for (int bits = 0; bits < patterns; ++bits) {
    const std::uint32_t result = std::bit_cast<std::uint32_t>(to_float(half(bits)));
    if (is_nan(half(bits))) {
      ASSERT_GT(result & 0x7fffffffu, 0x7f800000u) << bits;
    } else if (!is_finite(half(bits))) {
      ASSERT_EQ(result, bits == 0x7c00 ? 0x7f800000u : 0xff800000u);
    } else if (bits == 0x8000) {
      ASSERT_EQ(result, 0x80000000u);
    } else {
      const std::int64_t units = test::fp16_to_units(half(bits).bits);
      ASSERT_EQ(result, test::float32_bits(test::round_to_float32(units, 1, -24))) << bits;
    }
  }
}

TEST(Half, ReadsEveryBf16Exactly) {
  for (int bits = 0; bits < patterns; ++bits) {
    const BF16 x{static_cast<std::uint16_t>(bits)};
    ASSERT_EQ(std::bit_cast<std::uint32_t>(to_float(x)), static_cast<std::uint32_t>(bits) << 16);
  }
}

TEST(Half, RoundTripsEveryF16) {
  for (int bits = 0; bits < patterns; ++bits) {
    const F16 back = to_f16(to_float(half(bits)));
    if (is_nan(half(bits))) {
      ASSERT_TRUE(is_nan(back) && (back.bits & 0x200u) != 0) << bits;
    } else {
      ASSERT_EQ(back, half(bits));
    }
  }
}

TEST(Half, RoundTripsEveryBf16) {
  for (int bits = 0; bits < patterns; ++bits) {
    const BF16 x{static_cast<std::uint16_t>(bits)};
    const BF16 back = to_bf16(to_float(x));
    if ((bits & 0x7fff) > 0x7f80) {
      ASSERT_EQ(back.bits, bits | 0x40);
    } else {
      ASSERT_EQ(back, x);
    }
  }
}

TEST(HalfAgreement, F16IsTheNearestOne) {
  for_each_decisive_float([](std::uint32_t bits) {
    if ((bits & 0x7fffffffu) >= 0x7f800000u) return;
    const F16 result = to_f16(float_of(bits));
    if (result.bits != test::nearest_fp16_to_float(bits))
      ADD_FAILURE() << std::hex << bits << " became " << result.bits;
  });
}

TEST(HalfAgreement, Bf16IsTheNearestOne) {
  for (std::uint64_t wide = 0; wide < 0x100000000u; wide += 251) {
    const std::uint32_t bits = static_cast<std::uint32_t>(wide);
    if ((bits & 0x7fffffffu) > 0x7f800000u) continue;
    // Within one bf16 step float32 bits are evenly spaced values.
    const std::uint32_t rest = bits & 0xffffu;
    const bool up = rest > 0x8000u || (rest == 0x8000u && (bits & 0x10000u) != 0);
    ASSERT_EQ(to_bf16(float_of(bits)).bits, (bits >> 16) + (up ? 1u : 0u)) << std::hex << bits;
  }
  for (std::uint32_t high = 0; high < 0xff80u; ++high)
    for (const std::uint32_t low : {0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      if ((high & 0x7fffu) >= 0x7f80u) continue;
      const bool up = low > 0x8000u || (low == 0x8000u && high % 2 == 1);
      ASSERT_EQ(to_bf16(float_of(high << 16 | low)).bits, high + (up ? 1u : 0u)) << high;
    }
}

#if KVTILT_X86
[[gnu::target("f16c")]] std::uint16_t to_f16_by_processor(float x) {
  return static_cast<std::uint16_t>(
      _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0));
}
#elif KVTILT_ARM64
std::uint16_t to_f16_by_processor(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}
#endif

#if KVTILT_X86 || KVTILT_ARM64
TEST(HalfAgreement, ProcessorRoundsAlike) {
  if (KVTILT_X86 && !is_runnable(Isa::Avx2)) GTEST_SKIP() << "this processor has no F16C";
  for (std::uint64_t wide = 0; wide < 0x100000000u; wide += 509) {
    const float x = float_of(static_cast<std::uint32_t>(wide));
    if (test::is_nan(x)) continue;
    ASSERT_EQ(to_f16(x).bits, to_f16_by_processor(x)) << std::hex << wide;
  }
}
#endif

TEST(Half, RoundsTheEndsOfTheRange) {
  EXPECT_EQ(to_f16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_f16(65519.99f).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_f16(-65520.0f).bits, 0xfc00);
  EXPECT_EQ(to_f16(float_of(0x7f800000u)).bits, 0x7c00);
  EXPECT_EQ(to_f16(float_of(0xff800000u)).bits, 0xfc00);
  EXPECT_EQ(to_f16(0x1p-25f).bits, 0) << "a tie goes to even";
  EXPECT_EQ(to_f16(float_of(std::bit_cast<std::uint32_t>(0x1p-25f) + 1)).bits, 1);
  EXPECT_EQ(to_f16(-0x1p-25f).bits, 0x8000);
  EXPECT_EQ(to_f16(0x1.8p-24f).bits, 2) << "a tie goes to even";
  EXPECT_EQ(to_bf16(float_of(0x7f7fffffu)).bits, 0x7f80);
}

TEST(HalfHostile, NanStaysNan) {
  for (std::uint32_t payload = 1; payload < 0x800000u; payload += 1021)
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const float nan = float_of(sign | 0x7f800000u | payload);
      ASSERT_TRUE(is_nan(to_f16(nan))) << payload;
      ASSERT_EQ(to_f16(nan).bits >> 15, sign >> 31);
      ASSERT_GT(to_bf16(nan).bits & 0x7fffu, 0x7f80u) << payload;
    }
}

TEST(Half, PlusZeroChangesNothingElse) {
  EXPECT_EQ(to_f16_plus_zero(float_of(0x80000000u)).bits, 0);
  EXPECT_EQ(to_f16_plus_zero(-0x1p-26f).bits, 0);
  for (int bits = 0; bits < patterns; ++bits)
    if (bits != 0x8000 && !is_nan(half(bits))) {
      ASSERT_EQ(to_f16_plus_zero(to_float(half(bits))), half(bits));
    }
}

TEST(HalfProperty, UpIsTheSmallestThatIsNotBelow) {
  for_each_decisive_float([](std::uint32_t bits) {
    if (bits > std::bit_cast<std::uint32_t>(f16_max)) return;
    // For non-negative floats the order of bits is the order of values.
    const F16 up = to_f16_up(float_of(bits));
    const bool covers = std::bit_cast<std::uint32_t>(to_float(up)) >= bits;
    const bool smallest =
        up.bits == 0 || std::bit_cast<std::uint32_t>(to_float(half(up.bits - 1))) < bits;
    if (!covers || !smallest) ADD_FAILURE() << std::hex << bits << " became " << up.bits;
  });
}

TEST(Half, CountsUnits) {
  for (int bits = 0; bits < patterns; ++bits)
    if (is_finite(half(bits))) {
      ASSERT_EQ(to_units(half(bits)), test::fp16_to_units(half(bits).bits));
    }
}

TEST(HalfAgreement, RatiosOfUnitsAreTheNearestOnes) {
  const auto check = [](std::int64_t numerator, std::int64_t denominator) {
    const std::uint16_t nearest = test::nearest_fp16(numerator, denominator);
    const std::uint16_t expected = nearest == 0x8000u ? 0 : nearest;
    ASSERT_EQ(units_ratio_to_f16(numerator, denominator).bits, expected)
        << numerator << " / " << denominator;
  };
  const std::vector<std::int64_t>& units = test::fp16_units();
  for (std::size_t bits = 0; bits + 1 < units.size(); ++bits)
    for (const std::int64_t denominator : {1, 2, 3, 64, 127, 128})
      for (std::int64_t nudge = -1; nudge <= 1; ++nudge) {  // around numbers and midpoints
        check(units[bits] * denominator + nudge, denominator);
        check(-units[bits] * denominator + nudge, denominator);
        check((units[bits] + units[bits + 1]) * denominator + nudge, 2 * denominator);
        check(-(units[bits] + units[bits + 1]) * denominator + nudge, 2 * denominator);
      }
}

TEST(HalfRandom, RatiosOfUnitsAreTheNearestOnes) {
  test::Random random(1);
  for (int i = 0; i < 400000; ++i) {
    const std::int64_t denominator = random.between(1, 128);
    std::int64_t numerator = static_cast<std::int64_t>(random.next() >> random.between(17, 63));
    if (numerator / denominator >= 65504ll << 24) continue;
    if (random.chance(2)) numerator = -numerator;
    const std::uint16_t nearest = test::nearest_fp16(numerator, denominator);
    ASSERT_EQ(units_ratio_to_f16(numerator, denominator).bits, nearest == 0x8000u ? 0 : nearest)
        << numerator << " / " << denominator;
  }
}

TEST(HalfAgreement, ModesOfTheProcessorChangeNothing) {
  for (const test::FloatMode mode : test::all_float_modes) {
    const test::FloatModeGuard guard(mode);
    for (int bits = 0; bits < patterns; ++bits) {
      if (!is_finite(half(bits))) continue;
      const std::int64_t units = test::fp16_to_units(half(bits).bits);
      const std::uint32_t expected =
          bits == 0x8000 ? 0x80000000u : test::float32_bits(test::round_to_float32(units, 1, -24));
      const float value = to_float(half(bits));
      ASSERT_EQ(std::bit_cast<std::uint32_t>(value), expected) << bits;
      ASSERT_EQ(to_f16(value), half(bits));
    }
    for (std::uint64_t wide = 0; wide < 0x100000000u; wide += 65521) {
      const std::uint32_t bits = static_cast<std::uint32_t>(wide);
      if ((bits & 0x7fffffffu) >= 0x7f800000u) continue;
      ASSERT_EQ(to_f16(float_of(bits)).bits, test::nearest_fp16_to_float(bits)) << bits;
    }
  }
}

TEST(Half, IsUsableInConstantExpressions) {
  static_assert(to_f16(1.0f).bits == 0x3c00);
  static_assert(to_float(F16{0x0001}) == 0x1p-24f);
  static_assert(to_f16_up(65503.0f).bits == 0x7bff);
  static_assert(to_bf16(1.0f).bits == 0x3f80);
  static_assert(to_units(F16{0xfbff}) == -(std::int64_t{65504} << 24));
  static_assert(units_ratio_to_f16(3, 2).bits == 2);
  static_assert(bit_cast<std::uint32_t>(1.0f) == 0x3f800000u);
}

TEST(Half, HasTheLayoutOfItsBits) {
  static_assert(sizeof(F16) == 2 && sizeof(BF16) == 2);
  static_assert(alignof(F16) == 2 && alignof(BF16) == 2);
  EXPECT_EQ(std::bit_cast<std::uint16_t>(F16{0x1234}), 0x1234);
  EXPECT_EQ(F16{}.bits, 0);
}

}  // namespace
}  // namespace kvtilt
