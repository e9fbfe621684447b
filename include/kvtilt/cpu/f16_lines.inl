// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Writes rows into 16-bit blocks, and checks that they can be stored.

inline F32x16 load_row(const float* p) { return load(p); }
inline F32x16 load_row(const BF16* p) { return load_bf16(p); }

/// Sixteen values to fp16.
template <class T>
inline void to_f16_line(const T* row, F16* out) {
  store_f16(out, load_row(row));
}
inline void to_f16_line(const F16* row, F16* out) {
  std::memcpy(out, row, line_lanes * sizeof(F16));
}

/// Eight values to fp16.
template <class T>
inline void to_f16_narrow_line(const T* row, F16* out) {
  T padded[line_lanes] = {};
  F16 line[line_lanes];
  std::memcpy(padded, row, line_lanes / 2 * sizeof(T));
  to_f16_line(padded, line);
  std::memcpy(out, line, line_lanes / 2 * sizeof(F16));
}

/// How many tokens ahead rows are prefetched: rows of a head are too far apart for the hardware.
inline constexpr int value_lead = 4;
inline constexpr int key_lead = line_lanes;

/// Bytes to the row to prefetch, which need not exist. Unsigned: a single row has any stride.
template <class T>
inline std::ptrdiff_t bytes_ahead(int lead, std::ptrdiff_t stride) {
  return static_cast<std::ptrdiff_t>(static_cast<std::uintptr_t>(stride) *
                                     static_cast<std::uintptr_t>(lead) * sizeof(T));
}

/// Writes one value row: each 16 channels go to one line of a block.
template <class T>
inline void write_value(const T* row, std::ptrdiff_t stride, CodeMatrix matrix, F16* stored,
                        int slot) {
  const std::ptrdiff_t lead = bytes_ahead<T>(value_lead, stride);
  const std::ptrdiff_t block = static_cast<std::ptrdiff_t>(line_lanes) * matrix.inner;
  const int full = matrix.full_blocks() * line_lanes;
  F16* line = stored + slot * line_lanes;
  for (int channel = 0; channel < full; channel += line_lanes, line += block) {
    prefetch(row + channel, lead);
    to_f16_line(row + channel, line);
  }
  if (full < matrix.outer)
    to_f16_narrow_line(row + full, stored + half_position(matrix, full, slot));
}

/// Writes one key row: one lane of each channel's line.
template <class T>
inline void write_key(const T* row, CodeMatrix matrix, F16* stored, int slot) {
  F16* lane = stored + half_position(matrix, slot, 0);
  F16 line[line_lanes];
  for (int channel = 0; channel < matrix.inner;
       channel += line_lanes, lane += line_lanes * line_lanes) {
    const int count = smaller(line_lanes, matrix.inner - channel);
    if (count == line_lanes)
      to_f16_line(row + channel, line);
    else
      to_f16_narrow_line(row + channel, line);
    for (int c = 0; c < count; ++c) lane[c * line_lanes] = line[c];
  }
}

/// Writes sixteen key rows, whole lines: converts and transposes 16 channels at a time.
template <class T>
inline void write_key_lines(const T* rows, std::ptrdiff_t stride, int dim, F16* lines) {
  const std::ptrdiff_t lead = bytes_ahead<T>(key_lead, stride);
  // An array of F16 would be zeroed.
  alignas(line_bytes) std::byte scratch[line_lanes * line_lanes * sizeof(F16)];
  F16* square = reinterpret_cast<F16*>(scratch);
  for (int channel = 0; channel < dim; channel += line_lanes, lines += line_lanes * line_lanes) {
    const bool full = dim - channel >= line_lanes;
    for (int r = 0; r < line_lanes; ++r) {
      const T* row = rows + r * stride + channel;
      prefetch(row, lead);
      if (full)
        to_f16_line(row, square + r * line_lanes);
      else
        to_f16_narrow_line(row, square + r * line_lanes);
    }
    const F16* second = square + 8 * line_lanes;
    transpose_halves(square, second, line_lanes, lines);
    if (full) transpose_halves(square + 8, second + 8, line_lanes, lines + 8 * line_lanes);
  }
}

template <class T>
inline void write_values_of(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                            F16* stored, int slot) {
  for (int i = 0; i < range.count; ++i)
    write_value(rows.row<T>(range.token + i, range.head), rows.token_stride, matrix, stored,
                slot + i);
}

template <class T>
inline void write_keys_of(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                          F16* stored, int slot) {
  for (int i = 0; i < range.count;) {
    const T* row = rows.row<T>(range.token + i, range.head);
    if ((slot + i) % line_lanes == 0 && range.count - i >= line_lanes) {
      write_key_lines(row, rows.token_stride, matrix.inner,
                      stored + half_position(matrix, slot + i, 0));
      i += line_lanes;
    } else {
      write_key(row, matrix, stored, slot + i);
      ++i;
    }
  }
}

inline void write_values(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                         F16* stored, int slot) {
  if (rows.type == ElementType::F32)
    return write_values_of<float>(rows, range, matrix, stored, slot);
  if (rows.type == ElementType::BF16)
    return write_values_of<BF16>(rows, range, matrix, stored, slot);
  write_values_of<F16>(rows, range, matrix, stored, slot);
}

inline void write_keys(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                       F16* stored, int slot) {
  if (rows.type == ElementType::F32) return write_keys_of<float>(rows, range, matrix, stored, slot);
  if (rows.type == ElementType::BF16) return write_keys_of<BF16>(rows, range, matrix, stored, slot);
  write_keys_of<F16>(rows, range, matrix, stored, slot);
}

/// A magnitude above the limit carries into the sign bit. Integers, as -ffast-math may assume that
/// there is no NaN. 16-bit types lie two to a lane.
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
