// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.

inline F32x16 load_row(const float* p) { return load(p); }
inline F32x16 load_row(const BF16* p) { return load_bf16(p); }

/// Converts by lines; the last one overlaps its predecessor, or is a copy where there is none.
template <class T>
inline void to_f16_lines(const T* row, int count, F16* out) {
  if (count < line_lanes) {
    T padded[line_lanes] = {};
    F16 line[line_lanes];
    std::memcpy(padded, row, static_cast<std::size_t>(count) * sizeof(T));
    store_f16(line, load_row(padded));
    std::memcpy(out, line, static_cast<std::size_t>(count) * sizeof(F16));
    return;
  }
  for (int i = 0; i < count; i += line_lanes) {
    const int at = smaller(i, count - line_lanes);
    store_f16(out + at, load_row(row + at));
  }
}

inline void to_f16_row(const void* row, ElementType type, int count, F16* out) {
  if (type == ElementType::F32)
    to_f16_lines(static_cast<const float*>(row), count, out);
  else if (type == ElementType::BF16)
    to_f16_lines(static_cast<const BF16*>(row), count, out);
  else
    std::memcpy(out, row, static_cast<std::size_t>(count) * sizeof(F16));
}

/// Sixteen rows of T, by squares: what is converted is transposed while it is in the first cache.
template <class T>
inline void transpose_converted(const T* rows, std::ptrdiff_t stride, int count, F16* lines) {
  const int width = smaller(line_lanes, count);
  F16 square[line_lanes][line_lanes];
  for (int i = 0; i < count; i += line_lanes) {
    const int at = smaller(i, count - width);
    for (int r = 0; r < line_lanes; ++r)
      to_f16_lines(rows + r * stride + at, width, square[r]);
    for (int c = 0; c < width; c += 8)
      transpose_halves(square[0] + c, square[8] + c, line_lanes, lines + (at + c) * line_lanes);
  }
}

inline void transpose_rows(const void* rows, ElementType type, std::ptrdiff_t stride, int count,
                           F16* lines) {
  if (type == ElementType::F32) {
    transpose_converted(static_cast<const float*>(rows), stride, count, lines);
  } else if (type == ElementType::BF16) {
    transpose_converted(static_cast<const BF16*>(rows), stride, count, lines);
  } else {
    const F16* halves = static_cast<const F16*>(rows);
    for (int c = 0; c < count; c += 8)
      transpose_halves(halves + c, halves + 8 * stride + c, stride, lines + c * line_lanes);
  }
}

/// A magnitude above the limit carries into the sign bit: integers, as -ffast-math may assume NaN
/// away. 16-bit types two to a lane.
inline bool exceeds(const void* row, ElementType type, int count, float limit) {
  const bool wide = type == ElementType::F32;
  const std::uint32_t largest = bit_cast<std::uint32_t>(limit);
  const std::uint32_t half_largest = type == ElementType::F16 ? to_f16(limit).bits : largest >> 16;
  const I32x16 magnitudes = broadcast_bits(wide ? 0x7fffffffu : 0x7fff7fffu);
  const I32x16 carry =
      broadcast_bits(wide ? 0x7fffffffu - largest : (0x7fffu - half_largest) * 0x10001u);
  const std::byte* bytes = static_cast<const std::byte*>(row);
  const int size = count * (wide ? 4 : 2);
  I32x16 sums = broadcast_bits(0);
  int i = 0;
  for (; i + line_bytes <= size; i += line_bytes)
    sums = bit_or(sums, add_ints(bit_and(load_line(bytes + i, line_lanes), magnitudes), carry));
  if (i < size) {
    std::byte rest[line_bytes] = {};
    std::memcpy(rest, bytes + i, static_cast<std::size_t>(size - i));
    sums = bit_or(sums, add_ints(bit_and(load_line(rest, line_lanes), magnitudes), carry));
  }
  return nonzero(bit_and(sums, broadcast_bits(wide ? 0x80000000u : 0x80008000u))) != 0;
}
