// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/page/fragments.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;

constexpr CodeMatrix matrix = {64, 64};

/// A plane of random bytes as lanes load it: run by run.
template <int Width>
std::vector<Words> random_plane(Random& random) {
  std::vector<Words> plane(fragment_plane_bytes(matrix, Width) / sizeof(Words));
  for (Words& words : plane)
    for (std::uint32_t& word : words.word) word = static_cast<std::uint32_t>(random.next() >> 32);
  return plane;
}

template <int Width>
void expect_registers_hold_codes(Role role) {
  Random random(Width);
  const std::vector<Words> plane = random_plane<Width>(random);
  const std::uint8_t* bytes = reinterpret_cast<const std::uint8_t*>(plane.data());
  for (int outer = 0; outer < matrix.outer; ++outer)
    for (int inner = 0; inner < matrix.inner; ++inner) {
      const FragmentPlace place = fragment_place(role, outer, inner);
      const int index = tile_index(role, matrix, Width, outer / tile_extent, inner / tile_extent);
      const int run = index / tiles_in_words(Width);
      const Words words =
          load_words(reinterpret_cast<const std::byte*>(bytes) + run * 512 + place.lane * 16);
      std::uint32_t a[4];
      expand_tile<Width>(words, index % tiles_in_words(Width), a);
      const std::uint32_t bits = a[place.reg] >> (16 * place.half) & 0xffff;
      std::uint32_t expected = 0;
      if constexpr (Width == 16) {
        std::memcpy(&expected, bytes + half_offset(role, matrix, outer, inner), 2);
      } else {
        const int shift = place.reg % 2 * outer_shift(Width) + place.reg / 2 * inner_shift(Width);
        expected =
            static_cast<std::uint32_t>(read_fragment_code(role, bytes, matrix, Width, outer, inner))
            << shift;
        ASSERT_LT(expected, 1u << 10) << "a subnormal";
      }
      ASSERT_EQ(bits, expected) << Width << " bits, " << outer << ", " << inner;
    }
}

TEST(Fragments, RegistersAreCodesTimesPowersOfTwo) {
  for (const Role role : {Role::Keys, Role::Values}) {
    expect_registers_hold_codes<1>(role);
    expect_registers_hold_codes<2>(role);
    expect_registers_hold_codes<4>(role);
    expect_registers_hold_codes<8>(role);
    expect_registers_hold_codes<16>(role);
  }
}

TEST(Fragments, OddBytesAreBytesOneAndThree) { EXPECT_EQ(odd_bytes(0x12345678u), 0x00120056u); }

TEST(Fragments, PowersOfTwoAreExact) {
  for (int exponent = -24; exponent <= 15; ++exponent)
    EXPECT_EQ(to_float(F16{static_cast<std::uint16_t>(half_power(exponent))}),
              std::ldexp(1.0f, exponent))
        << exponent;
  for (int exponent = -126; exponent <= 127; ++exponent)
    EXPECT_EQ(float_power(exponent), std::ldexp(1.0f, exponent)) << exponent;
}

}  // namespace
}  // namespace kvtilt::cuda
