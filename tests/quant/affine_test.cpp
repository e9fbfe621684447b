// SPDX-License-Identifier: MIT
#include <kvtilt/quant/affine.hpp>

#include "support/float_modes.hpp"
#include "support/group_check.hpp"
#include "support/group_data.hpp"
#include "support/quantizer_oracle.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt {
namespace {

using test::Data;
using test::Wide;

constexpr int positive_halves = 0x7c00;

F16 half(int bits) { return F16{static_cast<std::uint16_t>(bits)}; }
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(Affine, HasTheCodesOfItsWidth) {
  for (int bits = 1; bits <= 8; ++bits) EXPECT_EQ(max_code(bits), (1 << bits) - 1);
}

TEST(AffineAgreement, EveryReciprocalIsCorrectlyRounded) {
  EXPECT_EQ(bits_of(reciprocal(F16{})), 0u);
  for (int bits = 1; bits < positive_halves; ++bits) {
    const std::int64_t units = test::fp16_to_units(half(bits).bits);
    const std::uint32_t expected = test::float32_bits(test::round_to_float32(1, units, 24));
    ASSERT_EQ(bits_of(reciprocal(half(bits))), expected) << bits;
  }
}

TEST(AffineAgreement, RoundsHalfToEven) {
  const auto check = [](std::uint32_t bits) {
    const test::Binary t = test::float32_value(bits);
    const int shift = t.exponent < -100 ? 100 : -t.exponent;
    const Wide expected = test::round_half_even(t.mantissa, Wide{1} << shift);
    ASSERT_EQ(round_half_even(float_of(bits)), static_cast<int>(expected)) << bits;
  };
  for (int quarter = 0; quarter < 40000; ++quarter)
    for (int step = -4; step <= 4; ++step) {
      const std::uint32_t bits = bits_of(static_cast<float>(quarter) * 0.25f);
      check(quarter == 0 ? static_cast<std::uint32_t>(step + 4)
                         : bits + static_cast<std::uint32_t>(step));
    }
  for (std::uint32_t bits = 0; bits < bits_of(0x1p22f); bits += 1021) check(bits);
  EXPECT_EQ(round_half_even(float_of(0x80000000u)), 0);
  EXPECT_EQ(round_half_even(float_of(bits_of(0x1p22f) - 1)), 1 << 22);
}

/// s*n is exact in float32, so the expected scale needs no search.
TEST(AffineProperty, ScalesAreSmallestAndSufficient) {
  for (int bits = 1; bits <= 8; ++bits) {
    const int n = max_code(bits);
    for (int scale = 0; scale < positive_halves; ++scale) {
      const Wide units = Wide{test::fp16_to_units(half(scale).bits)} * n;
      if (units > Wide{131008} << 24) break;
      const std::uint32_t range = test::float32_bits(test::round_to_float32(units, 1, -24));
      ASSERT_EQ(smallest_scale(float_of(range), n).bits, scale) << n;
      if (scale == 0) continue;
      ASSERT_EQ(smallest_scale(float_of(range - 1), n).bits, scale) << n;
      if (scale + 1 < positive_halves) {
        ASSERT_EQ(smallest_scale(float_of(range + 1), n).bits, scale + 1) << n;
      }
    }
  }
}

TEST(Affine, ScaleOfTheWidestRangeIsFinite) {
  for (int bits = 2; bits <= 8; ++bits)
    EXPECT_LT(smallest_scale(131008.0f, max_code(bits)).bits, 0x7c00) << bits;
  EXPECT_EQ(smallest_scale(f16_max, 1).bits, 0x7bff);
}

TEST(Affine, ComparesNonNegativeFloats) {
  EXPECT_TRUE(at_least(1.0f, 1.0f));
  EXPECT_TRUE(at_least(float_of(bits_of(1.0f) + 1), 1.0f));
  EXPECT_FALSE(at_least(1.0f, float_of(bits_of(1.0f) + 1)));
  EXPECT_TRUE(at_least(0.0f, 0.0f));
}

TEST(Affine, OrdersAllHalves) {
  for (int bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7fff) >= positive_halves) continue;
    ASSERT_EQ(from_ordered(ordered(half(bits))).bits, bits == 0x8000 ? 0 : bits);
  }
  for (int order = -0x7bff; order < 0x7bff; ++order)
    ASSERT_LT(test::fp16_to_units(from_ordered(order).bits),
              test::fp16_to_units(from_ordered(order + 1).bits));
}

TEST(AffineAgreement, MinMaxEqualsTheOracle) {
  for (int bits = 2; bits <= 8; ++bits)
    test::for_each_group(static_cast<std::uint64_t>(bits), f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           test::check_with_oracle(kind, group, bits, RangeRule::MinMax);
                         });
}

TEST(AffineProperty, StridedGroupsAreTheSame) {
  std::vector<F16> rows(128 * 3);
  std::vector<std::uint16_t> group(128);
  test::Random random(9);
  test::fill_group(random, Data::WideRange, group);
  for (std::size_t i = 0; i < 128; ++i) rows[3 * i + 1] = F16{group[i]};
  const std::vector<F16> dense = test::to_halves(group);
  EXPECT_EQ(fit_min_max({rows.data() + 1, 128, 3}, 4), fit_min_max(test::view_of(dense), 4));
  EXPECT_EQ(fit_min_max({rows.data() + 1 + 127 * 3, 128, -3}, 4),
            fit_min_max(test::view_of(dense), 4));
}

/// |h - (z + s*code)| <= s (1/2 + 2^(b-22)) and s <= range/n (1 + 2^-10) + 2^-24, in integers.
TEST(AffineProperty, ErrorsKeepTheirBounds) {
  for (int bits = 2; bits <= 8; ++bits)
    test::for_each_group(
        static_cast<std::uint64_t>(bits) + 100, f16_max,
        [&](Data kind, std::span<const std::uint16_t> group) {
          const auto stored = test::quantize_by_library(group, bits, RangeRule::MinMax);
          const Wide scale = test::fp16_to_units(stored.affine.scale.bits);
          const Wide minimum = test::fp16_to_units(stored.affine.minimum.bits);
          Wide high = minimum;
          bool bounded = true;
          for (std::size_t i = 0; i < group.size(); ++i) {
            const Wide value = test::fp16_to_units(group[i]);
            high = value > high ? value : high;
            const int code = stored.codes[i];
            const Wide error = test::absolute(value - minimum - scale * code);
            bounded = bounded && code >= 0 && code <= max_code(bits) && value >= minimum &&
                      (error << 22) <= scale * ((1 << 21) + (1 << bits));
          }
          const int n = max_code(bits);
          EXPECT_TRUE(bounded) << test::describe(kind, group, bits, RangeRule::MinMax);
          EXPECT_TRUE(scale * n * 1024 <= (high - minimum) * 1025 + n * 1024)
              << test::describe(kind, group, bits, RangeRule::MinMax);
          EXPECT_NE(stored.affine.minimum.bits, 0x8000);
        });
}

TEST(Affine, KeepsConstantGroupsExact) {
  for (int bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7fff) >= positive_halves) continue;
    const std::vector<F16> group(static_cast<std::size_t>(bits % 128 + 1), half(bits));
    const Affine affine = fit_min_max(test::view_of(group), 2 + bits % 7);
    ASSERT_EQ(affine.scale.bits, 0) << bits;
    const int code = encode(group[0], to_float(affine.minimum), reciprocal(affine.scale));
    ASSERT_EQ(code, 0);
    ASSERT_EQ(bits_of(decode(code, affine)), bits == 0x8000 ? 0u : bits_of(to_float(half(bits))));
  }
}

TEST(Affine, KeepsTwoLevelsExactWhereTheyFit) {
  // Where the range is n * 2^k, every multiple of 2^k in it is decoded exactly.
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<F16> group;
    for (int code = 0; code <= max_code(bits) && code < 128; ++code)
      group.push_back(to_f16(static_cast<float>(code) * 0.25f - 3.0f));
    group.back() = to_f16(static_cast<float>(max_code(bits)) * 0.25f - 3.0f);
    const Affine affine = fit_min_max(test::view_of(group), bits);
    EXPECT_EQ(to_float(affine.scale), 0.25f);
    for (const F16 value : group) {
      const int code = encode(value, to_float(affine.minimum), reciprocal(affine.scale));
      EXPECT_EQ(decode(code, affine), to_float(value));
    }
  }
}

TEST(AffineProperty, PowersOfTwoChangeNoCode) {
  for (int bits = 2; bits <= 8; ++bits) test::check_scale_equivariance(bits, RangeRule::MinMax);
}

/// The product s*code is exact, so z + s*code rounds once, with or without FMA.
TEST(AffineAgreement, DecodesWithOneRounding) {
  test::Random random(5);
  for (int i = 0; i < 300000; ++i) {
    const std::uint16_t minimum = test::any_finite(random);
    const std::uint16_t scale = test::any_finite(random) & 0x7fffu;
    const int code = random.below(256);
    const Wide exact = test::fp16_to_units(minimum) + Wide{test::fp16_to_units(scale)} * code;
    const std::uint32_t expected = test::float32_bits(test::round_to_float32(exact, 1, -24));
    const std::uint32_t got = bits_of(decode(code, {half(scale), half(minimum)}));
    ASSERT_TRUE(got == expected || ((got | expected) << 1) == 0)
        << minimum << " + " << scale << " * " << code;
  }
}

TEST(AffineProperty, ClampedCodesStayInside) {
  test::Random random(6);
  for (int i = 0; i < 300000; ++i) {
    const int bits = random.between(1, 8);
    const F16 scale = half(random.below(positive_halves));
    const F16 value = half(test::any_finite(random));
    const float minimum = to_float(half(test::any_finite(random)));
    const int code = encode_clamped(value, minimum, reciprocal(scale), bits);
    ASSERT_GE(code, 0);
    ASSERT_LE(code, max_code(bits));
  }
}

TEST(AffineAgreement, FlushToZeroChangesNothing) {
  const test::FloatModeGuard guard(test::FloatMode::FlushToZero);
  for (int bits = 2; bits <= 8; bits += 3)
    test::for_each_group(static_cast<std::uint64_t>(bits) + 200, f16_max,
                         [&](Data kind, std::span<const std::uint16_t> group) {
                           test::check_with_oracle(kind, group, bits, RangeRule::MinMax);
                         });
}

TEST(Affine, IsUsableInConstantExpressions) {
  static constexpr F16 group[] = {{0x3c00}, {0x4000}, {0x4200}, {0x4400}};  // 1 2 3 4
  constexpr Affine affine = fit_min_max({group, 4, 1}, 2);
  static_assert(affine == Affine{{0x3c00}, {0x3c00}});
  static_assert(encode(group[2], 1.0f, reciprocal(affine.scale)) == 2);
  static_assert(decode(2, affine) == 3.0f);
}

}  // namespace
}  // namespace kvtilt
