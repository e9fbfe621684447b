// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/page/fragments.hpp>

#include "support/fragment_code.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;

constexpr CodeMatrix matrix = {64, 64};

/// Random bytes for all planes of codes.
std::vector<Words> random_codes(Random& random, int bits) {
  std::vector<Words> codes(code_bytes(matrix, bits) / sizeof(Words));
  for (Words& words : codes)
    for (std::uint32_t& word : words.word) word = static_cast<std::uint32_t>(random.next() >> 32);
  return codes;
}

template <int Bits>
void expect_registers_hold_codes(Role role) {
  Random random(Bits);
  const std::vector<Words> codes = random_codes(random, Bits);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(codes.data());
  std::vector<TileReader<Bits, tile_count(matrix)>> readers(warp_lanes);
  for (int inner_tile = 0; inner_tile < tiles_along(matrix.inner); ++inner_tile)
    for (int outer_tile = 0; outer_tile < tiles_along(matrix.outer); ++outer_tile) {
      std::uint32_t a[warp_lanes][4];
      for (int lane = 0; lane < warp_lanes; ++lane)
        readers[static_cast<std::size_t>(lane)].read(
            reinterpret_cast<const std::byte*>(bytes) + lane * 16,
            tile_index(role, matrix, Bits, outer_tile, inner_tile), a[lane]);
      for (int row = 0; row < tile_extent; ++row)
        for (int column = 0; column < tile_extent; ++column) {
          const int outer = outer_tile * tile_extent + row;
          const int inner = inner_tile * tile_extent + column;
          const FragmentPlace place = fragment_place(role, outer, inner);
          const int shift = place.reg % 2 * outer_shift(Bits) + place.reg / 2 * inner_shift(Bits);
          const auto code = static_cast<std::uint32_t>(
              test::read_fragment_code(role, bytes, matrix, Bits, outer, inner));
          ASSERT_LT(code << shift, 1u << 10) << "a subnormal";
          ASSERT_EQ(a[place.lane][place.reg] >> (16 * place.half) & 0xffff, code << shift)
              << Bits << " bits, " << outer << ", " << inner;
        }
    }
}

TEST(Fragments, RegistersAreCodesTimesPowersOfTwo) {
  for (const Role role : {Role::Keys, Role::Values}) {
    expect_registers_hold_codes<1>(role);
    expect_registers_hold_codes<2>(role);
    expect_registers_hold_codes<3>(role);
    expect_registers_hold_codes<4>(role);
    expect_registers_hold_codes<5>(role);
    expect_registers_hold_codes<6>(role);
    expect_registers_hold_codes<7>(role);
    expect_registers_hold_codes<8>(role);
  }
}

/// Loads, stores 1 as fp16 in the first half, and loads again.
[[gnu::noinline]] std::uint32_t changed_bits(const HalfTiles& tiles, F16* first) {
  const std::uint32_t before = tiles.load(0, 0).r[0];
  *first = F16{0x3c00};
  return before ^ tiles.load(0, 0).r[0];
}

TEST(Fragments, LoadsSeeWhatWasStoredAsFp16) {
  alignas(16) std::byte tile[fragment_tile_bytes] = {};
  EXPECT_EQ(changed_bits({Role::Keys, tile, 1, 1}, reinterpret_cast<F16*>(tile)), 0x3c00u);
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
