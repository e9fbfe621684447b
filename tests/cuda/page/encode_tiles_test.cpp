// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/encode_tiles.hpp>

#include "support/fragment_code.hpp"
#include "support/group_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

/// The codes of a tensor in fragment order.
struct Tensor {
  CodeMatrix matrix;
  int bits;
  std::vector<std::uint8_t> codes;

  Tensor(CodeMatrix matrix_, int bits_)
      : matrix(matrix_), bits(bits_), codes(code_bytes(matrix_, bits_) + 16) {}
};

/// Visits every element of a lane in `tiles` tiles from `first` on: tile, register and half,
/// position.
template <class Visit>
void for_each_element(Role role, CodeMatrix matrix, int first, int tiles, int lane, Visit visit) {
  for (int tile = first; tile < first + tiles && tile < cuda::tile_count(matrix); ++tile) {
    const int outer_tile = tile % cuda::tiles_along(matrix.outer);
    const int inner_tile = tile / cuda::tiles_along(matrix.outer);
    for (int i = 0; i < 8; ++i) {
      const int outer = outer_tile * 16 + lane / 4 * 2 + i / 4;
      const int inner = inner_tile * 16 + lane % 4 * 4 + i % 4;
      const cuda::FragmentPlace place = cuda::fragment_place(role, outer, inner);
      visit(tile - first, place, outer, inner);
    }
  }
}

class EncodeTiles : public testing::TestWithParam<int> {};

TEST_P(EncodeTiles, WordsAreThoseOfTheFragmentOrder) {
  const int bits = GetParam();
  Random random(static_cast<std::uint64_t>(bits));
  for (const Role role : {Role::Keys, Role::Values})
    for (const CodeMatrix matrix : {CodeMatrix{64, 128}, {32, 32}, {80, 64}, {16, 64}, {112, 32}}) {
      if (!cuda::supports_order(matrix, bits)) continue;
      Tensor expected(matrix, bits);
      for (int outer = 0; outer < matrix.outer; ++outer)
        for (int inner = 0; inner < matrix.inner; ++inner)
          write_fragment_code(role, expected.codes.data(), matrix, bits, outer, inner,
                              random.below(1 << bits));
      Tensor found(matrix, bits);
      for (auto& byte : found.codes) byte = 0;
      for (int first = 0; first < cuda::tile_count(matrix); first += cuda::encoded_tiles)
        for (int lane = 0; lane < 32; ++lane) {
          cuda::EncodedTiles codes = {};
          for_each_element(role, matrix, first, cuda::encoded_tiles, lane,
                           [&](int tile, cuda::FragmentPlace place, int outer, int inner) {
                             EXPECT_EQ(place.lane, lane);
                             codes[tile][place.reg] |=
                                 static_cast<std::uint32_t>(read_fragment_code(
                                     role, expected.codes.data(), matrix, bits, outer, inner))
                                 << (16 * place.half);
                           });
          cuda::store_codes(codes, bits, reinterpret_cast<std::byte*>(found.codes.data()), matrix,
                            first, lane);
        }
      EXPECT_EQ(found.codes, expected.codes) << matrix.outer << " x " << matrix.inner;
    }
}

/// Encodes a tensor of arbitrary halves with arbitrary scales and minima, and checks every code.
template <bool AlongOuter, int Together>
void check_codes(Random& random, Role role, CodeMatrix matrix, int bits, int group) {
  const TensorLayout packed{{bits, {}, group, {}}, matrix, AlongOuter, 0, 0};
  const int tiles = cuda::tile_count(matrix);
  std::vector<cuda::Fragment> halves(static_cast<std::size_t>(tiles) * 32);
  for (cuda::Fragment& fragment : halves)
    for (std::uint32_t& word : fragment.r)
      word = any_finite(random) | static_cast<std::uint32_t>(any_finite(random)) << 16;
  const cuda::HalfTiles half{role, reinterpret_cast<const std::byte*>(halves.data()),
                             cuda::tiles_along(matrix.outer), cuda::tiles_along(matrix.inner)};
  alignas(16) static cuda::GroupEncoder groups[4096];
  std::vector<float> inverse(4096);  // [band][pitch], as in the metadata
  std::vector<float> minimum(4096);
  for (int band = 0; band < packed.bands(); ++band)
    for (int i = 0; i < packed.pitch(); ++i) {
      const auto entry = static_cast<std::size_t>(band * packed.pitch() + i);
      const Affine affine{F16{static_cast<std::uint16_t>(random.below(0x7c00))},
                          F16{any_finite(random)}};
      inverse[entry] = reciprocal(affine.scale);
      minimum[entry] = to_float(affine.minimum);
      int place = i;  // groups along outer are in the order of registers
      if (AlongOuter && role == Role::Values) place = i / 4 * 4 + i % 2 * 2 + i % 4 / 2;
      groups[band * packed.pitch() + place] = cuda::GroupEncoder(affine);
    }
  const cuda::TileMap map(half, packed);
  for (int first = 0; first < tiles; first += cuda::encoded_tiles)
    for (int lane = 0; lane < 32; ++lane) {
      cuda::EncodedTiles codes;
      cuda::encode_tiles<AlongOuter, Together>(half, map, bits, groups, first, lane, codes);
      for_each_element(
          role, matrix, first, cuda::encoded_tiles, lane,
          [&](int tile, cuda::FragmentPlace at, int outer, int inner) {
            const auto entry =
                static_cast<std::size_t>((AlongOuter ? outer : inner) / group * packed.pitch() +
                                         (AlongOuter ? inner : outer));
            const F16 x{static_cast<std::uint16_t>(
                half.load(half.index(outer / 16, inner / 16), lane).r[at.reg] >> (16 * at.half))};
            ASSERT_EQ(
                codes[tile][at.reg] >> (16 * at.half) & 0xffffu,
                static_cast<std::uint32_t>(encode_clamped(x, minimum[entry], inverse[entry], bits)))
                << "outer " << outer << ", inner " << inner;
          });
    }
}

TEST_P(EncodeTiles, CodesAreThoseOfTheSpecification) {
  const int bits = GetParam();
  Random random(static_cast<std::uint64_t>(bits));
  for (const Role role : {Role::Keys, Role::Values}) {
    check_codes<true, 4>(random, role, {64, 128}, bits, 64);
    check_codes<true, 4>(random, role, {192, 32}, bits, 128);
    check_codes<true, 1>(random, role, {80, 64}, bits, 64);
    check_codes<true, 1>(random, role, {64, 64}, bits, 32);
    check_codes<false, 1>(random, role, {64, 96}, bits, 64);
    check_codes<false, 1>(random, role, {112, 32}, bits, 16);
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, EncodeTiles, testing::Range(1, 9),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace kvtilt::test
