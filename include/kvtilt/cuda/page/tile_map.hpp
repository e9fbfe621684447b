// SPDX-License-Identifier: MIT
/// Maps tiles of a sealed tensor, in the order of its planes, to their tiles in 16 bits and to
/// their groups. Built once for a tensor: a look-up costs a few multiplications and no division.
#pragma once

#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Divides a < 2^12 by d = `value` if a d < 2^20: a times the error of the inverse, below 2^-20, is
/// then less than 1/d. Zero, of a tensor without tiles, divides as one.
struct Divisor {
  int value;
  std::uint32_t inverse;  ///< 2^20 / value, rounded up

  KVTILT_HD constexpr explicit Divisor(int divisor)
      : value(divisor), inverse(((1u << 20) + at_least_one(divisor) - 1) / at_least_one(divisor)) {}
  [[nodiscard]] KVTILT_HD constexpr int quotient(int a) const {
    return static_cast<int>(static_cast<std::uint32_t>(a) * inverse >> 20);
  }

 private:
  KVTILT_HD static constexpr std::uint32_t at_least_one(int divisor) {
    return divisor > 1 ? static_cast<std::uint32_t>(divisor) : 1u;
  }
};

/// Groups of a tensor, those of padding included.
KVTILT_HD constexpr std::size_t group_count(const TensorLayout& packed) {
  return static_cast<std::size_t>(packed.bands()) * static_cast<std::size_t>(packed.pitch());
}

struct TilePlace {
  int half;   ///< index in HalfTiles
  int group;  ///< index in [band][pitch] of the tile's first group
};

struct TileMap {
  Divisor outer_tiles;
  Divisor group_tiles;
  int outer_step;  ///< from a tile to its neighbour along outer, in HalfTiles
  int inner_step;
  int pitch;  ///< groups of a band
  int total;
  bool along_outer;
  /// Whether four tiles from a multiple of four on always have the same groups and are neighbours
  /// along outer.
  bool four_tiles_share_groups;

  KVTILT_HD TileMap(const HalfTiles& half, const TensorLayout& packed)
      : outer_tiles(half.outer_tiles),
        group_tiles(packed.format.quantized() ? tiles_along(packed.format.group) : 1),
        outer_step(half.index(1, 0)),
        inner_step(half.index(0, 1)),
        pitch(packed.pitch()),
        total(half.outer_tiles * half.inner_tiles),
        along_outer(packed.group_along_outer),
        four_tiles_share_groups(along_outer && half.outer_tiles % 4 == 0 &&
                                group_tiles.value % 4 == 0) {}

  template <bool AlongOuter>
  [[nodiscard]] KVTILT_HD TilePlace place(int tile) const {
    const int inner = outer_tiles.quotient(tile);
    const int outer = tile - inner * outer_tiles.value;
    const int band = group_tiles.quotient(AlongOuter ? outer : inner);
    return {outer * outer_step + inner * inner_step,
            band * pitch + tile_extent * (AlongOuter ? inner : outer)};
  }
};

}  // namespace kvtilt::cuda
