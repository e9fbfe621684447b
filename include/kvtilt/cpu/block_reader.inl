// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }

/// Prefetches the cache line `distance` bytes from p, which may be in another page, into L2: two pages
/// of wide codes do not fit L1. Always inlined, because g++ drops calls of a function that only
/// prefetches.
KVTILT_INLINE void prefetch(const void* p, std::ptrdiff_t distance) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) +
                                                   static_cast<std::uintptr_t>(distance)),
                     0, 2);
}

/// Lanes of a block: 16, or 8 for the last block of an outer extent that is an odd multiple of 8.
inline int block_lanes(CodeMatrix matrix, int block) {
  return block < matrix.full_blocks() ? line_lanes : line_lanes / 2;
}

/// Quads of a unit. Every plane begins a new line after a unit, so a loop over units has constant
/// shifts. (Quads, planes and lines: page/bit_pack.hpp.)
constexpr int unit_quads(int bits) { return 8 / (bits & -bits); }

/// Decodes the quads of one block of any width: slower than BlockReader, but compiled once.
struct QuadReader {
  Planes split;
  const std::byte* plane[max_planes];
  int first_index;  ///< of the block's quad 0 in a plane
  int lanes;

  QuadReader(const std::byte* codes, CodeMatrix matrix, int bits, int block)
      : split(planes(bits)), first_index(0), lanes(block_lanes(matrix, block)) {
    const bool full = lanes == line_lanes;
    if (full) first_index = block * matrix.quads();
    for (int p = 0; p < split.count; ++p) {
      plane[p] = codes + (full ? 0 : full_plane_bytes(matrix, split.width[p]));
      codes += plane_bytes(matrix, split.width[p]);
    }
  }

  /// The codes of one quad: byte b of a lane is the code of inner index 4 * quad + b. Prefetches the
  /// line that is `prefetch_offset` bytes ahead.
  KVTILT_INLINE I32x16 codes(int quad, std::ptrdiff_t prefetch_offset) const {
    const int index = first_index + quad;
    I32x16 result = broadcast_bits(0);
    for (int p = 0; p < split.count; ++p) {
      const int width = split.width[p];
      const int fields = 8 / width;
      const std::byte* line = plane[p] + index / fields * lanes * lane_bytes;
      prefetch(line, prefetch_offset);
      if (width == 8) return load_line(line, lanes);
      const std::uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
      const I32x16 field = bit_and(shift_right(load_line(line, lanes), index % fields * width),
                                   broadcast_bits(mask));
      result = p == 0 ? field : bit_or(shift_left(result, width), field);
    }
    return result;
  }
};

/// Decodes the quads of one full block; the width is known at compile time.
template <int Bits>
struct BlockReader {
  static constexpr Planes split = planes(Bits);
  const std::byte* plane[max_planes];  ///< at the block's first unit

  /// Bytes of a unit in a plane.
  static constexpr std::ptrdiff_t unit_bytes(int width) {
    return unit_quads(Bits) / (8 / width) * line_bytes;
  }

  BlockReader() = default;
  KVTILT_INLINE BlockReader(const std::byte* codes, CodeMatrix matrix, int block) {
    const std::ptrdiff_t first_unit = block * matrix.quads() / unit_quads(Bits);
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      plane[p] = codes + first_unit * unit_bytes(split.width[p]);
      codes += plane_bytes(matrix, split.width[p]);
    }
  }

  /// The codes of quad `member` of a unit, as QuadReader::codes() returns them. After unrolling all
  /// shifts are constants.
  KVTILT_INLINE I32x16 codes(std::ptrdiff_t unit, int member,
                             std::ptrdiff_t prefetch_offset) const {
    I32x16 result = broadcast_bits(0);
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      const int width = split.width[p];
      const int fields = 8 / width;
      const std::byte* line = plane[p] + unit * unit_bytes(width) + member / fields * line_bytes;
      if (member % fields == 0) prefetch(line, prefetch_offset);
      if (width == 8) return load_line(line, line_lanes);
      const std::uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
      const I32x16 field = bit_and(
          shift_right(load_line(line, line_lanes), member % fields * width), broadcast_bits(mask));
      result = p == 0 ? field : bit_or(shift_left(result, width), field);
    }
    return result;
  }
};
