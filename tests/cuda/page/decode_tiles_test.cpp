// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/decode_tiles.hpp>

#include "support/fragment_code.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::test {
namespace {

void expect_decoded(Role role, const TensorLayout& layout, std::byte* block, Random& random) {
  for (std::size_t i = 0; i < code_bytes(layout.matrix, layout.format.bits); ++i)
    block[layout.codes + i] = static_cast<std::byte>(random.below(256));
  for (int band = 0; band < layout.bands(); ++band)
    for (int entry = 0; entry < 2 * layout.pitch(); ++entry)
      layout.scales(block, band)[entry] = F16{any_finite(random)};
  const auto* fields = reinterpret_cast<const std::uint8_t*>(block + layout.codes);
  const int outer_tiles = cuda::tiles_along(layout.matrix.outer);
  const int tiles = cuda::tile_count(layout.matrix);
  for (int first = 0; first < tiles; first += cuda::decoded_tiles)
    for (int lane = 0; lane < cuda::warp_lanes; ++lane) {
      cuda::CodeTiles codes;
      cuda::read_code_tiles(layout, block, first, lane, codes);
      for (int tile = first; tile < first + cuda::decoded_tiles; ++tile) {
        const std::uint32_t(&registers)[4] = codes[tile - first];
        if (tile >= tiles) {
          ASSERT_EQ(registers[0] | registers[1] | registers[2] | registers[3], 0u);
          continue;
        }
        const int outer_tile = tile % outer_tiles;
        const int inner_tile = tile / outer_tiles;
        cuda::TileNumbers numbers(role, registers);
        numbers.decode(cuda::LaneScales(layout, block, outer_tile, inner_tile, lane),
                       layout.group_along_outer);
        for (int i = 0; i < 8; ++i) {
          const int outer = outer_tile * cuda::tile_extent + lane / 4 * 2 + i / 4;
          const int inner = inner_tile * cuda::tile_extent + lane % 4 * 4 + i % 4;
          const cuda::FragmentPlace place = cuda::fragment_place(role, outer, inner);
          const int code =
              read_fragment_code(role, fields, layout.matrix, layout.format.bits, outer, inner);
          ASSERT_EQ(static_cast<int>(registers[place.reg] >> (16 * place.half) & 0xffffu), code);
          const int along = layout.group_along_outer ? outer : inner;
          const F16* scales = layout.scales(block, along / layout.format.group) +
                              (layout.group_along_outer ? inner : outer);
          ASSERT_EQ(numbers.x[i / 4][i % 4], decode(code, {scales[0], scales[layout.pitch()]}))
              << "outer " << outer << ", inner " << inner;
        }
      }
    }
}

class DecodeTiles : public testing::TestWithParam<int> {};

TEST_P(DecodeTiles, GiveTheNumbersOfTheSpecification) {
  const int bits = GetParam();
  Random random(static_cast<std::uint64_t>(bits));
  for (const Extents extents : {Extents{64, 128}, {32, 32}, {80, 64}, {16, 64}, {112, 32}})
    for (const Format& format : formats_of(bits, extents)) {
      SCOPED_TRACE(to_string(format, extents));
      const HeadLayout head = layout_of(format, extents);
      if (!cuda::supports_order(head.key.matrix, bits)) continue;
      Block block(head.bytes());
      expect_decoded(Role::Keys, head.key, block.data(), random);
      expect_decoded(Role::Values, head.value, block.data(), random);
      if (testing::Test::HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Bits, DecodeTiles, testing::Range(1, 9),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace kvtilt::test
