// SPDX-License-Identifier: MIT
#include <kvtilt/core/mix_bits.hpp>

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

namespace kvtilt {
namespace {

// Of fmix64 as published with MurmurHash3, computed in Python.
TEST(MixBits, IsTheFinalizerOfMurmurHash3) {
  EXPECT_EQ(mix_bits(0), 0u);
  EXPECT_EQ(mix_bits(1), 0xb456bcfc34c2cb2cu);
  EXPECT_EQ(mix_bits(0x0123456789abcdefu), 0x87cbfbfe89022ceau);
  EXPECT_EQ(mix_bits(~std::uint64_t{0}), 0x64b5720b4b825f21u);
}

TEST(MixBits, AnyBitChangesAboutHalfOfTheOthers) {
  for (int bit = 0; bit < 64; ++bit) {
    const int changed = std::popcount(mix_bits(12345) ^ mix_bits(12345 ^ std::uint64_t{1} << bit));
    EXPECT_GT(changed, 16) << bit;
    EXPECT_LT(changed, 48) << bit;
  }
}

}  // namespace
}  // namespace kvtilt
