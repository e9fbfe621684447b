// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>

#include <gtest/gtest.h>
#include <llama/half.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace llama {
namespace {

float f16_value(std::uint32_t bits) {
  return kvtilt::to_float(kvtilt::F16{static_cast<std::uint16_t>(bits)});
}

TEST(Half, RoundingKeepsEveryF16Value) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_value(bits);
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
    const float low = f16_value(bits);
    // Above the largest value, rounding acts as if 65536 were the next one.
    const float high = bits == 0x7BFF ? 65536.0F : f16_value(bits + 1);
    const float rounded_up = bits == 0x7BFF ? std::numeric_limits<float>::infinity() : high;
    const float middle = low + (high - low) / 2;  // exact
    EXPECT_EQ(round_to_f16(std::nextafter(middle, 0.0F)), low) << bits;
    EXPECT_EQ(round_to_f16(std::nextafter(middle, 1e9F)), rounded_up) << bits;
    EXPECT_EQ(round_to_f16(middle), bits % 2 == 0 ? low : rounded_up) << bits;
    EXPECT_EQ(round_to_f16(-middle), -round_to_f16(middle)) << bits;
  }
}

}  // namespace
}  // namespace llama
