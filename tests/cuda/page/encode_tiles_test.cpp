// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/encode_tiles.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

/// Codes of a whole tensor, one lane at a time.
struct Tensor {
  CodeMatrix matrix;
  int bits;
  std::vector<std::uint8_t> codes;

  Tensor(CodeMatrix matrix_, int bits_)
      : matrix(matrix_), bits(bits_), codes(code_bytes(matrix_, bits_) + 16) {}
};

/// For every element of a tensor in its tile: what a lane holds in which half of which register.
template <class Visit>
void for_each_element(cuda::Role role, CodeMatrix matrix, int first, int tiles, int lane,
                      Visit visit) {
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
  for (const cuda::Role role : {cuda::Role::Keys, cuda::Role::Values})
    for (const CodeMatrix matrix : {CodeMatrix{64, 128}, {32, 32}, {80, 64}, {16, 64}, {112, 32}}) {
      if (!cuda::supports_order(matrix, bits)) continue;
      Tensor expected(matrix, bits);
      for (int outer = 0; outer < matrix.outer; ++outer)
        for (int inner = 0; inner < matrix.inner; ++inner)
          cuda::write_fragment_code(role, expected.codes.data(), matrix, bits, outer, inner,
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
                                 static_cast<std::uint32_t>(cuda::read_fragment_code(
                                     role, expected.codes.data(), matrix, bits, outer, inner))
                                 << (16 * place.half);
                           });
          cuda::store_codes(codes, bits, reinterpret_cast<std::byte*>(found.codes.data()), matrix,
                            first, lane);
        }
      EXPECT_EQ(found.codes, expected.codes) << matrix.outer << " x " << matrix.inner;
    }
}

INSTANTIATE_TEST_SUITE_P(Bits, EncodeTiles, testing::Range(1, 9),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace kvtilt::test
