// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Unpacks pages to rows: decodes squares of 16 tokens x 16 channels (8 channels at the end of some
// heads), then writes rows. The width is a run-time value, so that one function is compiled instead
// of nine.

/// Decodes `quads` quads of a block from `first` on into one line of 16-bit integers per inner index.
inline void read_codes(const QuadReader& reader, int first, int quads, std::int16_t* lines) {
  const I32x16 low_byte = broadcast_bits(0xffu);
  for (int q = 0; q < quads; ++q, lines += quad_codes * line_lanes) {
    const I32x16 word = reader.codes(first + q, 0);
    KVTILT_UNROLL(2)
    for (int b = 0; b < quad_codes; b += 2)
      store_words(lines + b * line_lanes,
                  pack_words(bit_and(shift_right(word, 8 * b), low_byte),
                             bit_and(shift_right(word, 8 * b + 8), low_byte)));
  }
}

inline void store_line_as(float* row, const F32x16& x) { store(row, x); }
inline void store_line_as(F16* row, const F32x16& x) { store_f16(row, x); }

/// Rounds to nearest, ties to even; x must not be NaN.
inline void store_line_as(BF16* row, const F32x16& x) {
  const I32x16 bits = bits_of(x);
  const I32x16 half_ulp =
      add_ints(bit_and(shift_right(bits, 16), broadcast_bits(1)), broadcast_bits(0x7fffu));
  const I32x16 upper = shift_right_signed(add_ints(bits, half_ulp), 16);
  std::int16_t words[2 * line_lanes];
  store_words(words, pack_words(upper, upper));
  std::memcpy(static_cast<void*>(row), words, line_lanes * sizeof(BF16));
}

/// Sixteen tokens of 16 or 8 channels.
struct Square {
  int token;  ///< a multiple of 16
  int channel;
  int channels;
};

inline constexpr int square_bytes = line_lanes * line_lanes * 2;

/// Transposes lines of 16 tokens, one line per channel, into rows of 16 channels, or of eight twice.
inline void transpose_square(const F16* lines, int channels, F16* rows) {
  const F16* second = channels == line_lanes ? lines + line_lanes * line_lanes / 2 : lines;
  for (int lane = 0; lane < line_lanes; lane += line_lanes / 2)
    transpose_halves(lines + lane, second + lane, line_lanes, rows + lane * line_lanes);
}

/// Where the rows of a square are, `stride` apart.
struct SquareRows {
  const F16* data;
  int stride;
};

/// Keys or values of one head's block.
struct UnpackSource {
  Role role;
  const TensorLayout& tensor;
  const std::byte* block;

  [[nodiscard]] bool keys() const { return role == Role::Keys; }

  /// Returns the rows of a square, one per token: fp16 values, or codes as the bits of fp16. They are
  /// written to `space` if the block does not hold them in this order.
  SquareRows read(const Square& square, std::byte* space) const {
    const int outer = keys() ? square.token : square.channel;
    const int inner = keys() ? square.channel : square.token;
    const int block_index = outer / line_lanes;
    alignas(line_bytes) std::byte channel_lines[square_bytes];
    std::byte* lines = keys() ? channel_lines : space;
    SquareRows rows{reinterpret_cast<const F16*>(lines), line_lanes};
    if (tensor.format.quantized())
      read_codes(QuadReader(block + tensor.codes, tensor.matrix, tensor.format.bits, block_index),
                 inner / quad_codes, (keys() ? square.channels : line_lanes) / quad_codes,
                 reinterpret_cast<std::int16_t*>(lines));
    else
      rows = {reinterpret_cast<const F16*>(block + tensor.codes) +
                  half_position(tensor.matrix, outer, inner),
              block_lanes(tensor.matrix, block_index)};
    if (!keys()) return rows;
    F16* transposed = reinterpret_cast<F16*>(space);
    transpose_square(rows.data, square.channels, transposed);
    return {transposed, line_lanes};
  }
};

/// Scales and minima of a square: one of each per channel, or per token.
struct SquareMetadata {
  bool per_token;
  F32x16 scale;
  F32x16 minimum;
  float scales[line_lanes];
  float minima[line_lanes];

  SquareMetadata() = default;
  SquareMetadata(const UnpackSource& source, const Square& square)
      : per_token(source.tensor.scales_along_inner() != source.keys()) {
    const int along = per_token ? square.channel : square.token;
    const int entry = per_token ? square.token : square.channel;
    const int entries = per_token ? line_lanes : square.channels;
    const F16* from =
        source.tensor.scales(source.block, along / source.tensor.format.group) + entry;
    // Codes are loaded as the bits of fp16 subnormals, multiples of 2^-24. Scaling by 2^24 is exact.
    scale = mul(load_f16(from, entries), broadcast(0x1p24f));
    minimum = load_f16(from + source.tensor.pitch(), entries);
    store(scales, scale);
    store(minima, minimum);
  }

  KVTILT_INLINE F32x16 decode(const F32x16& code, int token) const {
    if (!per_token) return multiply_add(code, scale, minimum);
    return multiply_add(code, broadcast(scales[token]), broadcast(minima[token]));
  }
};

/// A strip: all squares of 16 tokens.
struct Strip {
  static constexpr int most_squares = max_head_dim / line_lanes;
  bool quantized;
  SquareRows rows[most_squares];
  SquareMetadata metadata[most_squares];
  alignas(line_bytes) std::byte space[most_squares][square_bytes];

  [[nodiscard]] KVTILT_INLINE F32x16 values(int square, int token, int lanes) const {
    const F32x16 stored = load_f16(rows[square].data + token * lanes, lanes);
    return quantized ? metadata[square].decode(stored, token) : stored;
  }

  /// Writes one row of `dim` channels. Rows are completed one by one, as they may lie memory pages
  /// apart.
  template <class T>
  void store_row(int token, int dim, T* row) const {
    int square = 0;
    for (; (square + 1) * line_lanes <= dim; ++square, row += line_lanes)
      store_line_as(row, values(square, token, line_lanes));
    if (square * line_lanes == dim) return;
    std::byte line[line_bytes];
    store_line_as(reinterpret_cast<T*>(line), values(square, token, rows[square].stride));
    std::memcpy(static_cast<void*>(row), line, line_lanes / 2 * sizeof(T));
  }
};

inline void unpack(Role role, const TensorLayout& tensor, const std::byte* block, int slot,
                   const MutableTensorView& rows, const RowRange& range) {
  const UnpackSource source{role, tensor, block};
  const int end = slot + range.count;
  Strip strip;
  strip.quantized = tensor.format.quantized();
  for (int start = slot / line_lanes * line_lanes; start < end; start += line_lanes) {
    for (int channel = 0; channel < rows.dim; channel += line_lanes) {
      const Square square{start, channel, smaller(line_lanes, rows.dim - channel)};
      const int index = channel / line_lanes;
      strip.rows[index] = source.read(square, strip.space[index]);
      if (strip.quantized) strip.metadata[index] = SquareMetadata(source, square);
    }
    const int last = smaller(end, start + line_lanes) - start;
    for (int token = larger(slot - start, 0); token < last; ++token) {
      std::byte* row = rows.address(range.token + start + token - slot, range.head);
      if (rows.type == ElementType::F32)
        strip.store_row(token, rows.dim, reinterpret_cast<float*>(row));
      else if (rows.type == ElementType::F16)
        strip.store_row(token, rows.dim, reinterpret_cast<F16*>(row));
      else
        strip.store_row(token, rows.dim, reinterpret_cast<BF16*>(row));
    }
  }
}
