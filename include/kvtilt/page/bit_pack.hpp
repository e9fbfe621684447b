// SPDX-License-Identifier: MIT
/// Where the bits of a code lie: one order for memory, disk and all CPU instruction sets.
///
/// A tensor is a matrix [outer][inner] whose inner index attention sums over: keys are
/// [token][channel], values [channel][token]. So one contraction kernel serves both.
///
/// Codes are split into planes (bit fields) whose widths divide 8, the most significant bits first:
///
///     1 = 1   2 = 2   3 = 2+1   4 = 4   5 = 4+1   6 = 4+2   7 = 4+2+1   8 = 8
///
/// A plane is a sequence of 64-byte lines. A line has 16 lanes of 4 bytes: its lanes are 16
/// consecutive outer indices (a block), the bytes of a lane a quad, 4 consecutive inner indices. A
/// byte has 8/width fields, lowest bits first; each next field belongs to the next quad. For a
/// 4-bit plane of keys, tokens t0.. and channels c0..:
///
///              lane 0                                    lane 1           lane 15
///     line 0   [c4 c0 | c5 c1 | c6 c2 | c7 c3] of t0     ... of t0+1      ... of t0+15
///     line 1   [c12 c8 | ...                 ] of t0     ...
///               ^high nibble: field 1   ^low nibble: field 0
///
/// Quads are numbered through all full blocks, block after block: quad = block * inner/4 + i/4 of
/// inner index i lies in line quad / fields, field quad % fields. Only a plane's last line may have
/// padding. If outer is 8 more than a multiple of 16, the last 8 lanes follow in 32-byte lines,
/// whose quads are numbered from zero in the same way.
///
/// 16-bit tensors have no planes: [block of 16 lanes][inner][lane], the last block may have 8.
///
/// Why: a field of a 32-bit lane is a whole quad, the operand of an integer dot product
/// instruction, and shifted ORs pack it; no kernel shuffles lanes, and no sum crosses them.
#pragma once

#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt {

inline constexpr int line_lanes = 16;
inline constexpr int line_bytes = 64;
inline constexpr int lane_bytes = 4;
inline constexpr int quad_codes = 4;
inline constexpr int max_planes = 3;

/// Widths of the planes of a code, most significant first; unused entries are 0.
struct Planes {
  int count = 0;
  int width[max_planes] = {};
};

KVTILT_HD constexpr Planes planes(int bits) {
  Planes result;
  for (int width = 8; width > 0; width /= 2)
    if ((bits & width) != 0) result.width[result.count++] = width;
  return result;
}

/// Extents of a packed tensor: multiples of 8. If outer is not a multiple of 16, inner is a
/// multiple of 4 * 8 / (width of the smallest plane): true for values, as pages hold multiples of
/// 32 tokens.
struct CodeMatrix {
  int outer;
  int inner;

  [[nodiscard]] KVTILT_HD constexpr int full_blocks() const { return outer / line_lanes; }
  [[nodiscard]] KVTILT_HD constexpr int blocks() const {
    return (outer + line_lanes - 1) / line_lanes;
  }
  [[nodiscard]] KVTILT_HD constexpr int quads() const { return inner / quad_codes; }
};

/// Bytes of the full blocks of one plane.
KVTILT_HD constexpr std::size_t full_plane_bytes(CodeMatrix matrix, int width) {
  const int fields = 8 / width;
  const int lines = (matrix.full_blocks() * matrix.quads() + fields - 1) / fields;
  return static_cast<std::size_t>(lines) * line_bytes;
}

/// Bytes of one plane.
KVTILT_HD constexpr std::size_t plane_bytes(CodeMatrix matrix, int width) {
  const bool narrow_block = matrix.outer % line_lanes != 0;
  const int fields = 8 / width;
  const int narrow_lines = narrow_block ? (matrix.quads() + fields - 1) / fields : 0;
  return full_plane_bytes(matrix, width) + static_cast<std::size_t>(narrow_lines) * line_bytes / 2;
}

/// Bytes of all codes of a tensor.
KVTILT_HD constexpr std::size_t code_bytes(CodeMatrix matrix, int bits) {
  if (bits == half_bits)
    return static_cast<std::size_t>(matrix.outer) * static_cast<std::size_t>(matrix.inner) * 2;
  std::size_t bytes = 0;
  const Planes split = planes(bits);
  for (int plane = 0; plane < split.count; ++plane)
    bytes += plane_bytes(matrix, split.width[plane]);
  return bytes;
}

/// Where a plane keeps its bits of one code: `shift` is the position of their lowest bit.
struct FieldPosition {
  std::size_t byte;  ///< from the start of the plane
  int shift;
};

KVTILT_HD constexpr FieldPosition field_position(CodeMatrix matrix, int width, int outer,
                                                 int inner) {
  const int block = outer / line_lanes;
  const bool full = block < matrix.full_blocks();
  const int lane = outer % line_lanes;
  const int fields = 8 / width;
  const int index = (full ? block * matrix.quads() : 0) + inner / quad_codes;
  const std::size_t base = full ? 0 : full_plane_bytes(matrix, width);
  const int line = full ? line_bytes : line_bytes / 2;
  return {base + static_cast<std::size_t>(index / fields * line + lane * lane_bytes +
                                          inner % quad_codes),
          index % fields * width};
}

/// Offset of a 16-bit element from the start of the codes, in elements.
KVTILT_HD constexpr std::size_t half_position(CodeMatrix matrix, int outer, int inner) {
  const int block = outer / line_lanes;
  const int lanes = block < matrix.full_blocks() ? line_lanes : line_lanes / 2;
  return static_cast<std::size_t>(block * line_lanes * matrix.inner + inner * lanes +
                                  outer % line_lanes);
}

/// Reads one code, 1 to 8 bits. Scalar: for tests, tools and conversions.
constexpr int read_code(const std::uint8_t* codes, CodeMatrix matrix, int bits, int outer,
                        int inner) {
  int code = 0;
  const Planes split = planes(bits);
  for (int plane = 0; plane < split.count; ++plane) {
    const int width = split.width[plane];
    const FieldPosition at = field_position(matrix, width, outer, inner);
    code = (code << width) | ((codes[at.byte] >> at.shift) & ((1 << width) - 1));
    codes += plane_bytes(matrix, width);
  }
  return code;
}

}  // namespace kvtilt
