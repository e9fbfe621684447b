// SPDX-License-Identifier: MIT
/// Codes of a 16-bit tensor as words in fragment order: a lane's elements fill that lane's words, so
/// that nothing is moved between lanes, and 16 bytes are stored at a time.
#pragma once

#include <kvtilt/cuda/fit_groups.hpp>
#include <kvtilt/cuda/fragment_order.hpp>
#include <kvtilt/cuda/fragments.hpp>
#include <kvtilt/cuda/group_math.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Tiles that a warp encodes at a time: whole runs of words for most planes.
KVTILT_HD constexpr int encoded_tiles(int bits) { return bits == 4 || bits == 8 ? 4 : 8; }

/// Words a lane writes for `tiles` tiles of a plane.
KVTILT_HD constexpr int words_of(int tiles, int width) { return (tiles * width + 3) / 4; }

/// ORs the fields of a tile, four pairs of codes, into the words of a plane.
template <int Width>
KVTILT_HD void put_fields(const std::uint32_t (&fields)[4], int tile, std::uint32_t* words) {
  if constexpr (Width == 8) {
    words[2 * tile] = fields[0] | fields[1] << 8;
    words[2 * tile + 1] = fields[2] | fields[3] << 8;
  } else if constexpr (Width == 4) {
    words[tile] = fields[0] | fields[1] << 4 | fields[2] << 8 | fields[3] << 12;
  } else {
    const std::uint32_t tile_bits =
        fields[0] | fields[2] << Width | fields[1] << (2 * Width) | fields[3] << (3 * Width);
    constexpr int tiles_a_word = 4 / Width;
    const int place = tile % tiles_a_word;
    std::uint32_t& word = words[tile / tiles_a_word];
    word = place == 0 ? tile_bits : word | tile_bits << (4 * Width * place);
  }
}

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
template <int Bits, bool AlongOuter>
KVTILT_HD void encode_fragment(const Fragment& tile, const GroupCode* groups, int lane,
                               bool clamped, std::uint32_t (&codes)[4]) {
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
    if constexpr (Bits == 1) {  // the scale may be tiny beside the range
      a = a > 1.0f ? 1.0f : a;
      b = b > 1.0f ? 1.0f : b;
    }
    codes[reg] = join_low(rounded_bits(a), rounded_bits(b));
    if (clamped) codes[reg] = clamp_pair(codes[reg], max_code(Bits));
  }
}

namespace detail {

template <int Bits, int Plane>
KVTILT_HD void put_plane(const std::uint32_t (&codes)[4], int tile, std::uint32_t* words) {
  constexpr Planes split = planes(Bits);
  if constexpr (Plane < split.count) {
    constexpr int width = split.width[Plane];
    constexpr int below = Bits & (width - 1);
    std::uint32_t fields[4];
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg)
      fields[reg] =
          split.count == 1 ? codes[reg] : codes[reg] >> below & ((1u << width) - 1) * 0x10001u;
    put_fields<width>(fields, tile, words);
  }
}

template <int Bits, int Plane>
KVTILT_HD std::byte* store_plane(std::byte* plane, CodeMatrix matrix, int first_tile, int lane,
                                 const std::uint32_t* words) {
  constexpr Planes split = planes(Bits);
  if constexpr (Plane < split.count) {
    constexpr int width = split.width[Plane];
    store_words<words_of(encoded_tiles(Bits), width)>(plane, lane_words(matrix, width),
                                                      first_tile * width / 4, lane, words);
    plane += fragment_plane_bytes(matrix, width);
  }
  return plane;
}

}  // namespace detail

/// Encodes up to encoded_tiles(Bits) tiles from `first` on, a multiple of that, in the order of the
/// planes. `groups`: [band][pitch].
template <int Bits, bool AlongOuter>
KVTILT_HD void encode_tiles(const HalfTiles& half, const TensorLayout& packed,
                            const GroupCode* groups, std::byte* codes, int first, int lane) {
  constexpr int tiles = encoded_tiles(Bits);
  constexpr Planes split = planes(Bits);
  std::uint32_t words0[words_of(tiles, split.width[0])] = {};
  std::uint32_t words1[words_of(tiles, split.count > 1 ? split.width[1] : 1)] = {};
  std::uint32_t words2[words_of(tiles, split.count > 2 ? split.width[2] : 1)] = {};
  const int total = tile_count(packed.matrix);
  const bool clamped = packed.format.rule != RangeRule::MinMax;
  TileWalk at(packed, first);
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < tiles; ++i) {
    if (first + i >= total) break;
    std::uint32_t pairs[4];
    encode_fragment<Bits, AlongOuter>(half.load(half.index(at.outer, at.inner), lane),
                                      groups + at.first_group(), lane, clamped, pairs);
    detail::put_plane<Bits, 0>(pairs, i, words0);
    detail::put_plane<Bits, 1>(pairs, i, words1);
    detail::put_plane<Bits, 2>(pairs, i, words2);
    at.next();
  }
  codes = detail::store_plane<Bits, 0>(codes, packed.matrix, first, lane, words0);
  codes = detail::store_plane<Bits, 1>(codes, packed.matrix, first, lane, words1);
  detail::store_plane<Bits, 2>(codes, packed.matrix, first, lane, words2);
}

}  // namespace kvtilt::cuda
