// SPDX-License-Identifier: MIT
/// Codes of a 16-bit tensor as words in fragment order: a lane's elements fill that lane's words, so
/// that nothing is moved between lanes, and 16 bytes are stored at a time.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fit_groups.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Tiles that a warp encodes at a time: 16 bytes of a 2-bit plane for each lane.
inline constexpr int encoded_tiles = 8;

/// Pairs of codes, register by register.
using EncodedTiles = std::uint32_t[encoded_tiles][4];

struct alignas(8) Words2 {
  std::uint32_t w[2];
};

/// Stores a lane's words `first` on of a plane of which it owns `total`; first is a multiple of
/// Count, or of 4.
template <int Count>
KVTILT_HD void store_words(std::byte* plane, int total, int first, int lane,
                           const std::uint32_t* words) {
  constexpr int step = Count < 4 ? Count : 4;
  KVTILT_DEVICE_UNROLL
  for (int w = 0; w < Count; w += step) {
    const int word = first + w;
    if (word / 4 * 4 + 4 <= total) {
      std::byte* at = plane + lane_word_offset(total, word, lane);
      if constexpr (step == 4)
        *reinterpret_cast<Words*>(at) = {{words[w], words[w + 1], words[w + 2], words[w + 3]}};
      else if constexpr (step == 2)
        *reinterpret_cast<Words2*>(at) = {{words[w], words[w + 1]}};
      else
        *reinterpret_cast<std::uint32_t*>(at) = words[w];
    } else {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < step; ++i)
        if (word + i < total)
          *reinterpret_cast<std::uint32_t*>(plane + lane_word_offset(total, word + i, lane)) =
              words[w + i];
    }
  }
}

/// The fields of one plane, those from bit `below` of the codes on, as words. The only plane of a
/// width needs no masks.
template <int Width, bool Only>
KVTILT_HD void store_plane(const EncodedTiles& codes, int below, std::byte* plane,
                           CodeMatrix matrix, int first_tile, int lane) {
  constexpr int count = encoded_tiles * Width / 4;
  constexpr std::uint32_t mask = ((1u << Width) - 1) * 0x10001u;
  std::uint32_t words[count];
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < encoded_tiles; ++tile) {
    std::uint32_t f[4];
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg)
      f[reg] = Only ? codes[tile][reg] : codes[tile][reg] >> below & mask;
    if constexpr (Width == 8) {
      words[2 * tile] = f[0] | f[1] << 8;
      words[2 * tile + 1] = f[2] | f[3] << 8;
    } else if constexpr (Width == 4) {
      words[tile] = f[0] | f[1] << 4 | f[2] << 8 | f[3] << 12;
    } else {
      const std::uint32_t fields = f[0] | f[2] << Width | f[1] << (2 * Width) | f[3] << (3 * Width);
      constexpr int tiles_a_word = 4 / Width;
      const int place = tile % tiles_a_word;
      std::uint32_t& word = words[tile / tiles_a_word];
      word = place == 0 ? fields : word | fields << (4 * Width * place);
    }
  }
  store_words<count>(plane, lane_words(matrix, Width), first_tile * Width / 4, lane, words);
}

/// All planes of a width.
KVTILT_HD inline void store_codes(const EncodedTiles& codes, int bits, std::byte* plane,
                                  CodeMatrix matrix, int first_tile, int lane) {
  switch (bits) {
    case 1:
      return store_plane<1, true>(codes, 0, plane, matrix, first_tile, lane);
    case 2:
      return store_plane<2, true>(codes, 0, plane, matrix, first_tile, lane);
    case 4:
      return store_plane<4, true>(codes, 0, plane, matrix, first_tile, lane);
    case 8:
      return store_plane<8, true>(codes, 0, plane, matrix, first_tile, lane);
    default:
      break;
  }
  if ((bits & 4) != 0) {
    store_plane<4, false>(codes, bits & 3, plane, matrix, first_tile, lane);
    plane += fragment_plane_bytes(matrix, 4);
  }
  if ((bits & 2) != 0) {
    store_plane<2, false>(codes, bits & 1, plane, matrix, first_tile, lane);
    plane += fragment_plane_bytes(matrix, 2);
  }
  if ((bits & 1) != 0) store_plane<1, false>(codes, 0, plane, matrix, first_tile, lane);
}

/// Walks tiles in the order of the planes.
struct TileWalk {
  int outer_tiles;
  int group_tiles;
  int pitch;  ///< entries of a band
  bool along_outer;
  int outer;
  int inner;
  int band;
  int left;  ///< tiles of the group behind this one, along it

  KVTILT_HD TileWalk(const TensorLayout& packed, int tile)
      : outer_tiles(tiles_along(packed.matrix.outer)),
        group_tiles(tiles_along(packed.format.group)),
        pitch(packed.pitch()),
        along_outer(packed.group_along_outer),
        outer(tile % outer_tiles),
        inner(tile / outer_tiles) {
    const int along = along_outer ? outer : inner;
    band = along / group_tiles;
    left = group_tiles - 1 - along % group_tiles;
  }
  KVTILT_HD int first_group() const {
    return band * pitch + tile_extent * (along_outer ? inner : outer);
  }
  KVTILT_HD void next() {
    ++outer;
    const bool wraps = outer == outer_tiles;
    if (wraps) {
      outer = 0;
      ++inner;
    }
    if (along_outer && wraps) {
      band = 0;
      left = group_tiles - 1;
    } else if (along_outer || wraps) {
      if (--left < 0) {
        ++band;
        left = group_tiles - 1;
      }
    }
  }
};

/// Codes of the four registers of a tile, two to a word.
template <bool AlongOuter>
KVTILT_HD void encode_fragment(const Fragment& tile, const GroupCode* groups, int lane,
                               const Format& format, std::uint32_t (&codes)[4]) {
  // Along outer, groups stand as a lane's registers do: see ColumnGroups.
  constexpr int held = AlongOuter ? 4 : 2;
  GroupCode mine[held];
  const GroupCode* from = groups + (AlongOuter ? lane % 4 * 4 : lane / 4 * 2);
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < held; i += 2) {
    struct alignas(16) Two {
      GroupCode group[2];
    };
    const Two two = reinterpret_cast<const Two*>(from)[i / 2];
    mine[i] = two.group[0];
    mine[i + 1] = two.group[1];
  }
  KVTILT_DEVICE_UNROLL
  for (int reg = 0; reg < 4; ++reg) {
    const GroupCode low = mine[AlongOuter ? reg / 2 * 2 : reg % 2];
    const GroupCode high = mine[AlongOuter ? reg / 2 * 2 + 1 : reg % 2];
    float a = multiply(subtract(low_half(tile.r[reg]), low.minimum), low.inverse);
    float b = multiply(subtract(high_half(tile.r[reg]), high.minimum), high.inverse);
    if (format.rule == RangeRule::Centroids) {  // the scale may be tiny beside the range
      a = a > 1.0f ? 1.0f : a;
      b = b > 1.0f ? 1.0f : b;
    }
    codes[reg] = join_low(rounded_bits(a), rounded_bits(b));
    if (format.rule != RangeRule::MinMax)
      codes[reg] = clamp_pair(codes[reg], max_code(format.bits));
  }
}

/// Codes of encoded_tiles tiles from `first` on, a multiple of that, in the order of the planes;
/// zeros beyond the last. `groups`: [band][pitch].
template <bool AlongOuter>
KVTILT_HD void encode_tiles(const HalfTiles& half, const TensorLayout& packed,
                            const GroupCode* groups, int first, int lane, EncodedTiles& codes) {
  const int total = tile_count(packed.matrix);
  TileWalk at(packed, first);
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < encoded_tiles; ++i) {
    if (first + i < total) {
      encode_fragment<AlongOuter>(half.load(half.index(at.outer, at.inner), lane),
                                  groups + at.first_group(), lane, packed.format, codes[i]);
    } else {
      KVTILT_DEVICE_UNROLL
      for (int reg = 0; reg < 4; ++reg) codes[i][reg] = 0;
    }
    at.next();
  }
}

}  // namespace kvtilt::cuda
