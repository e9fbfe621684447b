// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/tile_map.hpp>

#include <gtest/gtest.h>

namespace kvtilt::cuda {
namespace {

TEST(TileMap, DivisorsDivide) {
  for (int divisor = 1; divisor <= 1 << 10; ++divisor) {
    const Divisor by(divisor);
    for (int a = 0; a < 1 << 12 && a * divisor < 1 << 20; ++a)
      ASSERT_EQ(by.quotient(a), a / divisor) << a << " / " << divisor;
  }
}

template <bool AlongOuter>
void check_map(Role role, int dim, int tokens, int group) {
  const bool keys = role == Role::Keys;
  const Format format{
      4, keys == AlongOuter ? Granularity::PerChannel : Granularity::PerToken, group, {}};
  const HeadLayout head = head_layout({format, format}, dim, dim, tokens, 0);
  const TensorLayout& packed = keys ? head.key : head.value;
  ASSERT_EQ(packed.group_along_outer, AlongOuter);
  const HalfTiles half{role, nullptr, packed.matrix.outer / 16, packed.matrix.inner / 16};
  const TileMap map(half, packed);
  EXPECT_EQ(map.along_outer, AlongOuter);
  EXPECT_EQ(map.total, tile_count(packed.matrix));
  const auto band_of = [&](int tile) {
    return (AlongOuter ? tile % half.outer_tiles : tile / half.outer_tiles) * 16 / group;
  };
  for (int tile = 0; tile < map.total; ++tile) {
    const int outer = tile % half.outer_tiles;
    const int inner = tile / half.outer_tiles;
    const TilePlace place = map.place<AlongOuter>(tile);
    ASSERT_EQ(place.half, half.index(outer, inner));
    ASSERT_EQ(place.group, band_of(tile) * packed.pitch() + 16 * (AlongOuter ? inner : outer));
    if (!map.four_tiles_share_groups) continue;
    const TilePlace first = map.place<AlongOuter>(tile / 4 * 4);
    ASSERT_EQ(place.group, first.group);
    ASSERT_EQ(place.half, first.half + tile % 4 * map.outer_step);
  }
  EXPECT_EQ(map.four_tiles_share_groups,
            AlongOuter && half.outer_tiles % 4 == 0 && group % 64 == 0);
}

TEST(TileMap, FindsTilesAndTheirGroups) {
  for (const Role role : {Role::Keys, Role::Values})
    for (const int dim : {64, 80, 96, 112, 128, 192, 256, 576})
      for (const int tokens : {32, 64, 128})
        for (int group = 16; group <= 128; group *= 2) {
          const int outer = role == Role::Keys ? tokens : dim;
          const int inner = role == Role::Keys ? dim : tokens;
          SCOPED_TRACE(testing::Message()
                       << dim << " channels, " << tokens << " tokens, " << group);
          if (group <= outer) check_map<true>(role, dim, tokens, group);
          if (group <= inner) check_map<false>(role, dim, tokens, group);
          if (testing::Test::HasFailure()) return;
        }
}

}  // namespace
}  // namespace kvtilt::cuda
