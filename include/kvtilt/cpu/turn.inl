// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Turns values that are in the keys into a block of values: codes from the order [token][channel] to
// [channel][token] (page/bit_pack.hpp), in squares of 16 tokens x 16 channels. No code changes.

inline constexpr int square_quads = line_lanes / quad_codes;
inline constexpr int most_page_quads = 128 / quad_codes;
inline constexpr int most_page_blocks = 128 / line_lanes;

/// Transposes a square of quads: of channels, one lane per token, to of tokens, one lane per channel.
KVTILT_INLINE void turn_square(I32x16 (&square)[square_quads], I32x16* quads) {
  transpose_bytes(square);
  KVTILT_UNROLL(4)
  for (int q = 0; q < square_quads; ++q) quads[q] = square[q];
}

/// Stores all quads of one block of values.
template <int Bits>
inline void write_block(const I32x16* quads, CodeMatrix matrix, int block, std::byte* codes) {
  const int lanes = block_lanes(matrix, block);
  const int first = lanes == line_lanes ? block * matrix.quads() : 0;
  for (int q = 0; q < matrix.quads(); q += unit_quads(Bits))
    write_unit<Bits>(codes, matrix, lanes, first + q, quads + q);
}

template <int Bits>
inline void turn_codes(const TensorLayout& keys, const std::byte* from, const TensorLayout& values,
                       std::byte* to) {
  constexpr int unit = unit_quads(Bits);
  constexpr int blocks = unit > square_quads ? unit / square_quads : 1;  // that have whole units
  const CodeMatrix matrix = values.matrix;
  const int token_blocks = keys.matrix.blocks();
  I32x16 square[square_quads];
  I32x16 quads[blocks][most_page_quads];
  int block = 0;
  if (keys.matrix.quads() % unit == 0) {
    BlockReader<Bits> readers[most_page_blocks];
    for (int t = 0; t < token_blocks; ++t) readers[t] = BlockReader<Bits>(from, keys.matrix, t);
    for (; block + blocks <= matrix.full_blocks(); block += blocks) {
      const std::ptrdiff_t first_unit = block * square_quads / unit;
      for (int t = 0; t < token_blocks; ++t) {
        KVTILT_UNROLL(2)
        for (int b = 0; b < blocks; ++b) {
          KVTILT_UNROLL(4)
          for (int q = 0; q < square_quads; ++q) {
            const int member = b * square_quads + q;
            square[q] = readers[t].codes(first_unit + member / unit, member % unit, 0);
          }
          turn_square(square, quads[b] + t * square_quads);
        }
      }
      for (int b = 0; b < blocks; ++b) write_block<Bits>(quads[b], matrix, block + b, to);
    }
  }
  for (; block < matrix.blocks(); ++block) {
    const int channel_quads = block_lanes(matrix, block) / quad_codes;
    for (int t = 0; t < token_blocks; ++t) {
      const QuadReader reader(from, keys.matrix, Bits, t);
      for (int q = 0; q < square_quads; ++q)
        square[q] =
            q < channel_quads ? reader.codes(block * square_quads + q, 0) : broadcast_bits(0);
      turn_square(square, quads[0] + t * square_quads);
    }
    write_block<Bits>(quads[0], matrix, block, to);
  }
}

/// Copies the scales and minima of the values' channels.
inline void turn_metadata(const TensorLayout& keys, const std::byte* from,
                          const TensorLayout& values, std::byte* to) {
  const std::size_t bytes = static_cast<std::size_t>(values.pitch()) * sizeof(F16);
  for (int band = 0; band < values.bands(); ++band) {
    const F16* scales = keys.scales(from, band);
    F16* turned = values.scales(to, band);
    std::memcpy(static_cast<void*>(turned), scales, bytes);
    std::memcpy(static_cast<void*>(turned + values.pitch()), scales + keys.pitch(), bytes);
  }
}

inline void turn_halves(CodeMatrix keys, const F16* from, CodeMatrix values, F16* to) {
  for (int channel = 0; channel < values.outer; channel += line_lanes) {
    const bool full = channel + line_lanes <= values.outer;
    for (int token = 0; token < values.inner; token += line_lanes) {
      const F16* lines = from + half_position(keys, token, channel);
      F16* rows = to + half_position(values, channel, token);
      if (full) {
        transpose_square(lines, line_lanes, rows);
        continue;
      }
      alignas(line_bytes) std::byte space[square_bytes];
      F16* wide = reinterpret_cast<F16*>(space);
      transpose_square(lines, line_lanes / 2, wide);
      for (int t = 0; t < line_lanes; ++t)
        std::memcpy(static_cast<void*>(rows + t * (line_lanes / 2)), wide + t * line_lanes,
                    line_lanes / 2 * sizeof(F16));
    }
  }
}

template <int Bits>
void turn(const TensorLayout& keys, const std::byte* block, const TensorLayout& values,
          std::byte* turned) {
  if constexpr (Bits == half_bits) {
    turn_halves(keys.matrix, reinterpret_cast<const F16*>(block + keys.codes), values.matrix,
                reinterpret_cast<F16*>(turned));
  } else {
    turn_codes<Bits>(keys, block + keys.codes, values, turned);
    turn_metadata(keys, block, values, turned);
  }
}
