// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <llama/half.hpp>

#include <cmath>
#include <limits>

namespace llama {
namespace {

TEST(Half, RoundingKeepsEveryF16Value) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(round_to_f16(value)));
    } else {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(round_to_f16(value)),
                std::bit_cast<std::uint32_t>(value))
          << bits;
    }
  }
}

TEST(Half, RoundingTakesTheNearestAndTheEvenOfTwo) {
  for (std::uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float low = f16_to_float(static_cast<std::uint16_t>(bits));
    // Above the largest value, rounding acts as if 65536 were next.
    const float high =
        bits == 0x7BFF ? 65536.0F : f16_to_float(static_cast<std::uint16_t>(bits + 1));
    const float rounded_up = bits == 0x7BFF ? std::numeric_limits<float>::infinity() : high;
    const float middle = low + (high - low) / 2;  // exact
    EXPECT_EQ(round_to_f16(std::nextafter(middle, 0.0F)), low) << bits;
    EXPECT_EQ(round_to_f16(std::nextafter(middle, 1e9F)), rounded_up) << bits;
    EXPECT_EQ(round_to_f16(middle), bits % 2 == 0 ? low : rounded_up) << bits;
    EXPECT_EQ(round_to_f16(-middle), -round_to_f16(middle)) << bits;
  }
}

TEST(Half, KnownValuesAreRead) {
  EXPECT_EQ(f16_to_float(0x3C00), 1.0F);
  EXPECT_EQ(f16_to_float(0xC000), -2.0F);
  EXPECT_EQ(f16_to_float(0x7BFF), 65504.0F);
  EXPECT_EQ(f16_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(f16_to_float(0x3555), 0.333251953125F);
  EXPECT_EQ(f16_to_float(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_EQ(bf16_to_float(0x3F80), 1.0F);
  EXPECT_EQ(bf16_to_float(0xC049), -3.140625F);
}

}  // namespace
}  // namespace llama
