// SPDX-License-Identifier: MIT
/// Decodes tiles of a page in device order to float32: minimum + scale * code, as decode() does.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Tiles that a warp decodes at a time: 16 bytes of a 4-bit plane for each lane.
inline constexpr int decoded_tiles = 4;

/// A lane's codes of decoded_tiles tiles, [tile][register]: two codes in the halves of a word,
/// which are also the bits of two fp16, codes times 2^-24.
using CodeTiles = std::uint32_t[decoded_tiles][4];

namespace detail {

/// Adds the fields of one plane to `codes`, which it shifts up for them; `First` plane: sets
/// `codes`. The tiles fill whole words.
template <int Width, bool First, int Tiles>
KVTILT_HD void split_words(const std::uint32_t (&words)[Width * Tiles / 4],
                           std::uint32_t (&codes)[Tiles][4]) {
  constexpr std::uint32_t mask = ((1u << Width) - 1) * 0x10001u;
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < Tiles; ++tile) {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) {
      const LaneField field = lane_field(Width, tile, reg);
      const std::uint32_t bits = words[field.word] >> field.shift & mask;
      codes[tile][reg] = First ? bits : codes[tile][reg] << Width | bits;
    }
  }
}

/// Adds one plane; words beyond its last are zeros.
template <int Width>
KVTILT_HD void read_plane(const std::byte* plane, CodeMatrix matrix, int first_tile, int lane,
                          CodeTiles& codes) {
  const int total = lane_words(matrix, Width);
  const int first = first_tile * Width / 4;
  std::uint32_t words[Width];
  KVTILT_DEVICE_UNROLL
  for (int w = 0; w < Width; w += 4) {
    const std::byte* at = plane + lane_word_offset(total, first + w, lane);
    if (Width >= 4 && first + w + 4 <= total) {
      const Words four = load_words(at);
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4 && w + i < Width; ++i) words[w + i] = four.word[i];
      continue;
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4 && w + i < Width; ++i)
      words[w + i] = first + w + i < total
                         ? load_word(plane + lane_word_offset(total, first + w + i, lane))
                         : 0;
  }
  split_words<Width, false, decoded_tiles>(words, codes);
}

/// A lane's words of four tiles of a plane whose number of tiles is a multiple of four.
template <int Width>
KVTILT_HD void load_whole_words(const std::byte* plane, CodeMatrix matrix, int first_tile, int lane,
                                std::uint32_t (&words)[Width]) {
  constexpr int run = Width < 4 ? Width : 4;
  const int word = first_tile * Width / 4;
  // Fewer than four words may be the last of the plane, where lanes are less than 16 bytes apart.
  const std::byte* at =
      plane + (run == 4 ? static_cast<std::size_t>((word * warp_lanes + lane * run) * 4)
                        : lane_word_offset(lane_words(matrix, Width), word, lane));
  KVTILT_DEVICE_UNROLL
  for (int w = 0; w < Width; w += run) {
    const WordRun<run> loaded = load_words<run>(at + w * warp_lanes * 4);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < run; ++i) words[w + i] = loaded.word[i];
  }
}

}  // namespace detail

/// Reads tiles `first` to first + 3 in the order of the planes; those beyond the last are zeros.
KVTILT_HD inline void read_code_tiles(const TensorLayout& packed, const std::byte* block, int first,
                                      int lane, CodeTiles& codes) {
  const std::byte* plane = block + packed.codes;
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < decoded_tiles; ++tile) {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) codes[tile][reg] = 0;
  }
  const int bits = packed.format.bits;
  if ((bits & 8) != 0) {
    detail::read_plane<8>(plane, packed.matrix, first, lane, codes);
    plane += fragment_plane_bytes(packed.matrix, 8);
  }
  if ((bits & 4) != 0) {
    detail::read_plane<4>(plane, packed.matrix, first, lane, codes);
    plane += fragment_plane_bytes(packed.matrix, 4);
  }
  if ((bits & 2) != 0) {
    detail::read_plane<2>(plane, packed.matrix, first, lane, codes);
    plane += fragment_plane_bytes(packed.matrix, 2);
  }
  if ((bits & 1) != 0) detail::read_plane<1>(plane, packed.matrix, first, lane, codes);
}

/// The same for codes of one plane; `first` and the number of tiles are multiples of four.
template <int Width>
KVTILT_HD void read_whole_tiles(const std::byte* plane, CodeMatrix matrix, int first, int lane,
                                CodeTiles& codes) {
  std::uint32_t words[Width];
  detail::load_whole_words<Width>(plane, matrix, first, lane, words);
  detail::split_words<Width, true, decoded_tiles>(words, codes);
}

/// Scales and minima, as stored, of four inner neighbours whose groups run along outer.
struct ScaleEntries {
  WordPair scale;
  WordPair minimum;

  KVTILT_HD ScaleEntries(const WordPair& scale_, const WordPair& minimum_)
      : scale(scale_), minimum(minimum_) {}
  /// The minima start `pitch` entries after the scales.
  KVTILT_HD ScaleEntries(const F16* scales, int pitch)
      : scale(load_words<2>(scales)), minimum(load_words<2>(scales + pitch)) {}
};

/// Scales, times 2^24, and minima of a lane's elements of a tile: indexed by inner neighbour where
/// groups run along outer, by outer neighbour where they run along inner.
struct LaneScales {
  float scale[4];
  float minimum[4];

  KVTILT_HD LaneScales(const TensorLayout& packed, const std::byte* block, int outer_tile,
                       int inner_tile, int lane) {
    const bool outer = packed.group_along_outer;
    const int along = (outer ? outer_tile : inner_tile) * tile_extent;
    const int entry =
        outer ? inner_tile * tile_extent + lane % 4 * 4 : outer_tile * tile_extent + lane / 4 * 2;
    const F16* scales = packed.scales(block, along / packed.format.group) + entry;
    const F16* minima = scales + packed.pitch();
    KVTILT_DEVICE_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const bool there = pair == 0 || outer;
      set(pair, there ? load_word(scales + 2 * pair) : 0, there ? load_word(minima + 2 * pair) : 0);
    }
  }

  KVTILT_HD explicit LaneScales(const ScaleEntries& entries) {
    KVTILT_DEVICE_UNROLL
    for (int pair = 0; pair < 2; ++pair)
      set(pair, entries.scale.word[pair], entries.minimum.word[pair]);
  }

 private:
  KVTILT_HD void set(int pair, std::uint32_t scales, std::uint32_t minima) {
    scale[2 * pair] = multiply(low_half(scales), 0x1p24f);
    scale[2 * pair + 1] = multiply(high_half(scales), 0x1p24f);
    minimum[2 * pair] = low_half(minima);
    minimum[2 * pair + 1] = high_half(minima);
  }
};

/// A lane's eight numbers of a tile: [outer neighbour][inner neighbour].
struct TileNumbers {
  float x[2][4];

  /// Widens a lane's registers, two fp16 each.
  KVTILT_HD TileNumbers(Role role, const std::uint32_t (&registers)[4]) {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) {
      const bool keys = role == Role::Keys;
      x[reg % 2][reg / 2 * (keys ? 2 : 1)] = low_half(registers[reg]);
      x[reg % 2][keys ? reg / 2 * 2 + 1 : reg / 2 + 2] = high_half(registers[reg]);
    }
  }

  /// Decodes numbers that are codes times 2^-24. Products with a scale are exact: only the sum
  /// rounds.
  KVTILT_HD void decode(const LaneScales& scales, bool along_outer) {
    KVTILT_DEVICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      KVTILT_DEVICE_UNROLL
      for (int inner = 0; inner < 4; ++inner) {
        const float scale = along_outer ? scales.scale[inner] : scales.scale[row];
        const float minimum = along_outer ? scales.minimum[inner] : scales.minimum[row];
        x[row][inner] = minimum + x[row][inner] * scale;
      }
    }
  }
};

}  // namespace kvtilt::cuda
