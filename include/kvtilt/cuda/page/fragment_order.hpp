// SPDX-License-Identifier: MIT
/// Where the bits of a code lie in a page on the GPU: in the order of tensor core operands, so that
/// attention never moves a key or a value between lanes. A device page has the size, the offsets
/// and the metadata of the CPU page (page/layout.hpp), byte for byte; only the order of codes
/// differs.
///
/// A tensor is the matrix [outer][inner] of bit_pack.hpp (keys [token][channel], values
/// [channel][token]) cut into tiles of 16 x 16: the A operand of mma.m16n8k16. A lane of the warp
/// owns 2 outer x 4 inner neighbours of a tile:
///
///               inner  0..3       4..7       8..11      12..15
///     outer 0, 1       lane 0     lane 1     lane 2     lane 3
///     outer 2, 3       lane 4     lane 5     ...
///     ...
///     outer 14, 15     lane 28    lane 29    lane 30    lane 31
///
/// They fill its registers R0 to R3, two 16-bit halves each (row = outer % 2, member = inner % 4):
///
///     keys     R[row + 2 (member / 2)], half member % 2    a register holds neighbouring channels,
///                                                          whose scales are neighbours, too
///     values   R[row + 2 (member % 2)], half member / 2    tokens are in the order in which the mma
///                                                          with the keys leaves their probabilities
///
/// (The instruction numbers rows and columns differently: outer 2g + row is its row g + 8 row. Any
/// order of the summed index is a valid one as long as both operands share it.)
///
/// Codes are split into the planes of bit_pack.hpp, most significant first; a plane is a sequence
/// of tiles. 16 bits are one plane. The bits of a lane's 32-bit word, in each of its two halves:
///
///     16   4 words a tile: R0, R1, R2, R3
///      8   2 words a tile: R0 in bits 0-7, R1 in 8-15; then R2, R3
///      4   1 word a tile:  R0 R1 R2 R3 in bits 0-3, 4-7, 8-11, 12-15
///      2   2 tiles a word: R0 R2 R1 R3 in bits 0-1, 2-3, 4-5, 6-7, the next tile in 8-15
///      1   4 tiles a word: R0 R2 R1 R3 in bits 0, 1, 2, 3, the next tiles in 4-7, 8-11, 12-15
///
/// So (word >> 0 or 8) & mask is a register of two fp16 subnormals, codes times a power of two;
/// with several planes, the codes are the sum of one such register of each.
///
/// Tiles are stored [inner tile][outer tile], keys in 16 bits [outer tile][inner tile], so that 16
/// tokens are contiguous in either tensor. The words of a plane are stored as [run of 4][lane][4
/// words], then, if two or three words are left over, [lane][2], and the last odd one [lane]: every
/// lane loads 16 bytes at a time.
#pragma once

#include <kvtilt/page/layout.hpp>

#include <cstddef>

namespace kvtilt::cuda {

inline constexpr int tile_extent = 16;
inline constexpr int warp_lanes = 32;

/// Which part of a fragment holds an element of a tile.
struct FragmentPlace {
  int lane;
  int reg;   ///< R0 to R3; odd: the odd one of the lane's two outer neighbours
  int half;  ///< 0: bits 0-15
};

KVTILT_HD constexpr FragmentPlace fragment_place(Role role, int outer, int inner) {
  const int row = outer % 2;
  const int member = inner % 4;
  const int lane = outer % tile_extent / 2 * 4 + inner % tile_extent / 4;
  if (role == Role::Keys) return {lane, row + 2 * (member / 2), member % 2};
  return {lane, row + 2 * (member % 2), member / 2};
}

/// Tiles along one axis.
KVTILT_HD constexpr int tiles_along(int extent) { return extent / tile_extent; }

KVTILT_HD constexpr int tile_count(CodeMatrix matrix) {
  return tiles_along(matrix.outer) * tiles_along(matrix.inner);
}

/// Position of a tile in its plane.
KVTILT_HD constexpr int tile_index(Role role, CodeMatrix matrix, int width, int outer_tile,
                                   int inner_tile) {
  if (role == Role::Keys && width == half_bits)
    return outer_tile * tiles_along(matrix.inner) + inner_tile;
  return inner_tile * tiles_along(matrix.outer) + outer_tile;
}

/// 32-bit words of a plane that one lane owns.
KVTILT_HD constexpr int lane_words(CodeMatrix matrix, int width) {
  return tile_count(matrix) * width / 4;
}

/// Byte, from the start of the plane, of word `word` of a lane that owns `words`.
KVTILT_HD constexpr std::size_t lane_word_offset(int words, int word, int lane) {
  const int left = words % 4;
  const int run = word / 4 * 4;  // words of the runs before this one
  int stride = 4;                // words of a lane in this run
  int first = run;
  if (run + 4 > words) {
    const bool pair = left >= 2 && word - run < 2;
    stride = pair ? 2 : 1;
    first = pair || left == 1 ? run : run + 2;
  }
  return static_cast<std::size_t>(first * warp_lanes + lane * stride + (word - first)) * 4;
}

/// Where a lane's words of a plane keep an element: the field in the low half of the word.
struct LaneField {
  int word;
  int shift;
};

KVTILT_HD constexpr LaneField lane_field(int width, int tile, int reg) {
  const int field = reg % 2 * 2 + reg / 2;
  switch (width) {
    case 16:
      return {4 * tile + reg, 0};
    case 8:
      return {2 * tile + reg / 2, 8 * (reg % 2)};
    case 4:
      return {tile, 4 * reg};
    case 2:
      return {tile / 2, 8 * (tile % 2) + 2 * field};
    default:
      return {tile / 4, 4 * (tile % 4) + field};
  }
}

/// A field of a 32-bit word: `byte` counts from the start of the plane.
struct WordPosition {
  std::size_t byte;
  int shift;
};

/// Where a plane keeps its bits of one element. Planes of 1 bit need a multiple of four tiles, of 2
/// bits an even number: see supports_order().
KVTILT_HD constexpr WordPosition word_position(Role role, CodeMatrix matrix, int width, int outer,
                                               int inner) {
  const FragmentPlace place = fragment_place(role, outer, inner);
  const int tile = tile_index(role, matrix, width, outer / tile_extent, inner / tile_extent);
  const LaneField field = lane_field(width, tile, place.reg);
  return {lane_word_offset(lane_words(matrix, width), field.word, place.lane),
          field.shift + 16 * place.half};
}

/// The fewest tiles that fill whole words of all planes of codes of `bits` bits.
KVTILT_HD constexpr int tiles_of_words(int bits) {
  return bits % 2 == 1 ? 4 : bits % 4 == 2 ? 2 : 1;
}

/// Whether a tensor's tiles fill whole words. Both extents are then multiples of 16, and a tensor
/// takes as many bytes as on the CPU.
KVTILT_HD constexpr bool supports_order(CodeMatrix matrix, int bits) {
  if (matrix.outer % tile_extent != 0 || matrix.inner % tile_extent != 0) return false;
  return tile_count(matrix) % tiles_of_words(bits) == 0;
}

/// Bytes of one plane.
KVTILT_HD constexpr std::size_t fragment_plane_bytes(CodeMatrix matrix, int width) {
  return static_cast<std::size_t>(lane_words(matrix, width)) * warp_lanes * 4;
}

/// Byte offset of a 16-bit element.
KVTILT_HD constexpr std::size_t half_offset(Role role, CodeMatrix matrix, int outer, int inner) {
  const WordPosition at = word_position(role, matrix, half_bits, outer, inner);
  return at.byte + static_cast<std::size_t>(at.shift / 8);
}

}  // namespace kvtilt::cuda
