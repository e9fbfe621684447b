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

/// Decodes the quads of one block; the width is known at compile time.
template <int Bits>
struct BlockReader {
  static constexpr Planes split = planes(Bits);
  const std::byte* plane[max_planes];  ///< at the block's first unit

  /// Lines of a unit in a plane.
  static constexpr std::ptrdiff_t unit_lines(int width) { return unit_quads(Bits) / (8 / width); }

  BlockReader() = default;
  KVTILT_INLINE BlockReader(const std::byte* codes, CodeMatrix matrix, int block) {
    const std::ptrdiff_t first_unit = block * matrix.quads() / unit_quads(Bits);
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      plane[p] = codes + first_unit * unit_lines(split.width[p]) * line_bytes;
      codes += plane_bytes(matrix, split.width[p]);
    }
  }

  /// Moves from block 0 to the last one of 8 lanes.
  void to_narrow_block(CodeMatrix matrix) {
    for (int p = 0; p < split.count; ++p) plane[p] += full_plane_bytes(matrix, split.width[p]);
  }

  /// The codes of quad `member` of a unit, as QuadReader::codes() returns them, but for the lanes that
  /// a narrow block lacks. Its lines lie half of line_bytes apart, and metadata follow the last one.
  /// After unrolling all shifts are constants.
  KVTILT_INLINE I32x16 codes(std::ptrdiff_t unit, int member, std::ptrdiff_t prefetch_offset,
                             std::ptrdiff_t line_distance = line_bytes) const {
    I32x16 result = broadcast_bits(0);
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      const int width = split.width[p];
      const int fields = 8 / width;
      const std::byte* line =
          plane[p] + (unit * unit_lines(width) + member / fields) * line_distance;
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

/// Most quads that a DecodeFn decodes, and the lines that it may write: whole units around them.
inline constexpr int decoded_quads = 32;
inline constexpr int decoded_lines = decoded_quads + 2 * unit_quads(1);

/// Decodes quads of one block to memory; those past its end may be anything. Returns where the first
/// one is among `lines`.
using DecodeFn = const I32x16* (*)(const std::byte* codes, CodeMatrix matrix, int block,
                                   Range quads, std::ptrdiff_t prefetch_offset, I32x16* lines);

/// Decodes quads one by one; those from `count` on, which the block lacks, are 0.
inline void decode_rest(const QuadReader& reader, Range quads, int count,
                        std::ptrdiff_t prefetch_offset, I32x16* lines) {
  for (int quad = quads.first; quad < quads.last; ++quad)
    *lines++ = quad < count ? reader.codes(quad, prefetch_offset) : broadcast_bits(0);
}

template <int Bits>
inline const I32x16* decode(const std::byte* codes, CodeMatrix matrix, int block, Range quads,
                            std::ptrdiff_t prefetch_offset, I32x16* lines) {
  constexpr int unit_size = unit_quads(Bits);
  // The first and the last unit may lie in two blocks, as units run through all full blocks.
  const bool full = block < matrix.full_blocks();
  const int first_index = full ? block * matrix.quads() : 0;
  const int units = (full ? matrix.full_blocks() : 1) * matrix.quads() / unit_size;
  const std::ptrdiff_t line_distance = full ? line_bytes : line_bytes / 2;
  const int last = first_index + quads.last;
  int unit = (first_index + quads.first) / unit_size;
  const I32x16* first = lines + (first_index + quads.first) % unit_size;
  BlockReader<Bits> reader(codes, matrix, 0);
  if (!full) reader.to_narrow_block(matrix);
  for (; unit < units && unit * unit_size < last; ++unit) {
    KVTILT_UNROLL(8)
    for (int member = 0; member < unit_size; ++member)
      *lines++ = reader.codes(unit, member, prefetch_offset, line_distance);
  }
  if (unit * unit_size < last)
    decode_rest(QuadReader(codes, matrix, Bits, block),
                {unit * unit_size - first_index, quads.last}, matrix.quads(), prefetch_offset,
                lines);
  return first;
}
