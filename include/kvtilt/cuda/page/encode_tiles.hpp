// SPDX-License-Identifier: MIT
/// Encodes a 16-bit tensor to words in fragment order: a lane's elements fill words of the same
/// lane, so no data moves between lanes, and lanes store 16 bytes at a time.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/tile_map.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Tiles that a warp encodes at a time: 16 bytes of a 4-bit plane for each lane. With 8, which fill
/// as much of a 2-bit plane, pack_kernel would not fit into 80 registers.
inline constexpr int encoded_tiles = 4;

/// A lane's codes, [tile][register], two to a word, of tiles that fill whole words.
template <int Tiles>
using TileCodes = std::uint32_t[Tiles][4];
using EncodedTiles = TileCodes<encoded_tiles>;

/// Stores a lane's words `first` to first + Count - 1, if they exist, of a plane of which it owns
/// `total`; first is a multiple of Count, or of 4.
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
        *reinterpret_cast<WordPair*>(at) = {{words[w], words[w + 1]}};
      else
        *reinterpret_cast<Word*>(at) = words[w];
    } else {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < step; ++i)
        if (word + i < total)
          *reinterpret_cast<Word*>(plane + lane_word_offset(total, word + i, lane)) = words[w + i];
    }
  }
}

/// Stores the fields of one plane: Width bits of the codes from bit `below` on. `Only`: it is the
/// only plane, so the codes need no mask.
template <int Width, bool Only, int Tiles>
KVTILT_HD void store_plane(const TileCodes<Tiles>& codes, int below, std::byte* plane,
                           CodeMatrix matrix, int first_tile, int lane) {
  constexpr int count = Tiles * Width / 4;
  constexpr std::uint32_t mask = ((1u << Width) - 1) * 0x10001u;
  std::uint32_t words[count];
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < Tiles; ++tile) {
    std::uint32_t f[4];
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg)
      f[reg] = Only ? codes[tile][reg] : codes[tile][reg] >> below & mask;
    // The terms have no bits in common, so + is |; a shift and an addition are one instruction.
    if constexpr (Width == 8) {
      words[2 * tile] = f[0] + (f[1] << 8);
      words[2 * tile + 1] = f[2] + (f[3] << 8);
    } else if constexpr (Width == 4) {
      words[tile] = f[0] + (f[1] << 4) + (f[2] << 8) + (f[3] << 12);
    } else {
      const std::uint32_t fields =
          f[0] + (f[2] << Width) + (f[1] << (2 * Width)) + (f[3] << (3 * Width));
      constexpr int tiles_a_word = 4 / Width;
      const int place = tile % tiles_a_word;
      std::uint32_t& word = words[tile / tiles_a_word];
      word = place == 0 ? fields : word + (fields << (4 * Width * place));
    }
  }
  store_words<count>(plane, lane_words(matrix, Width), first_tile * Width / 4, lane, words);
}

/// Stores all planes of the codes. `Tiles` is a multiple of tiles_of_words(bits).
template <int Tiles>
KVTILT_HD void store_codes(const TileCodes<Tiles>& codes, int bits, std::byte* plane,
                           CodeMatrix matrix, int first_tile, int lane) {
  constexpr bool ones = Tiles % 4 == 0;
  constexpr bool twos = Tiles % 2 == 0;
  if (bits == 8) return store_plane<8, true>(codes, 0, plane, matrix, first_tile, lane);
  if (bits == 4) return store_plane<4, true>(codes, 0, plane, matrix, first_tile, lane);
  if constexpr (twos) {
    if (bits == 2) return store_plane<2, true>(codes, 0, plane, matrix, first_tile, lane);
    if constexpr (ones)
      if (bits == 1) return store_plane<1, true>(codes, 0, plane, matrix, first_tile, lane);
    if ((bits & 4) != 0) {
      store_plane<4, false>(codes, bits & 3, plane, matrix, first_tile, lane);
      plane += fragment_plane_bytes(matrix, 4);
    }
    if ((bits & 2) != 0) {
      store_plane<2, false>(codes, bits & 1, plane, matrix, first_tile, lane);
      plane += fragment_plane_bytes(matrix, 2);
    }
    if constexpr (ones)
      if ((bits & 1) != 0) store_plane<1, false>(codes, 0, plane, matrix, first_tile, lane);
  }
}

/// Encoding parameters of a lane's groups in a tile. Groups along outer are in the order of its
/// registers: see ColumnGroups.
template <bool AlongOuter>
struct LaneGroups {
  static constexpr int held = AlongOuter ? 4 : 2;
  GroupEncoder group[held];

  /// groups  from the tile's first on
  KVTILT_HD void load(const GroupEncoder* groups, int lane) {
    struct [[gnu::may_alias]] alignas(16) Two {
      GroupEncoder group[2];
    };
    const GroupEncoder* from = groups + (AlongOuter ? lane % 4 * 4 : lane / 4 * 2);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < held; i += 2) {
      const Two two = reinterpret_cast<const Two*>(from)[i / 2];
      group[i] = two.group[0];
      group[i + 1] = two.group[1];
    }
  }

  /// Codes of the four registers of a tile, two to a word, clamped to `highest` (a no-op for
  /// MinMax).
  KVTILT_HD void encode(const Fragment& tile, int highest, std::uint32_t (&codes)[4]) const {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) {
      const GroupEncoder& low = group[AlongOuter ? reg / 2 * 2 : reg % 2];
      const GroupEncoder& high = group[AlongOuter ? reg / 2 * 2 + 1 : reg % 2];
      codes[reg] = min_halves(
          code_pair(low.units(low_half(tile.r[reg])), high.units(high_half(tile.r[reg]))),
          static_cast<std::uint32_t>(highest) * 0x10001u);
    }
  }
};

/// Encodes `Tiles` tiles from `first`, a multiple of `Tiles`, on, in the order of the planes;
/// beyond the last tile, it encodes another once more. `groups`: [band][pitch]. `Together` tiles
/// share groups: 4 if map.four_tiles_share_groups, otherwise 1.
template <bool AlongOuter, int Together, int Tiles>
KVTILT_HD void encode_tiles(const HalfTiles& half, const TileMap& map, int bits,
                            const GroupEncoder* groups, int first, int lane,
                            TileCodes<Tiles>& codes) {
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < Tiles; i += Together) {
    const int from = first + i < map.total ? first + i : map.total - Together;
    const TilePlace place = map.place<AlongOuter>(from);
    LaneGroups<AlongOuter> mine;
    mine.load(groups + place.group, lane);
    KVTILT_DEVICE_UNROLL
    for (int t = 0; t < Together; ++t)
      mine.encode(half.load(place.half + t * map.outer_step, lane), max_code(bits), codes[i + t]);
  }
}

}  // namespace kvtilt::cuda
