// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Pages back to rows, 16 tokens x 16 channels at a time (8 channels at the end of some heads). Widths
// are data here: float rows are written no faster than memory takes them, and one function for all
// widths compiles faster than nine.

/// The planes of a packed tensor, of any width.
struct PlaneLines {
  Planes split;
  const std::byte* full[max_planes];  ///< the lines of full blocks, and those of the last half one
  const std::byte* half[max_planes];

  PlaneLines(const TensorLayout& tensor, const std::byte* codes)
      : split(planes(tensor.format.bits)) {
    for (int p = 0; p < split.count; ++p) {
      full[p] = codes;
      half[p] = codes + full_plane_bytes(tensor.matrix, split.width[p]);
      codes += plane_bytes(tensor.matrix, split.width[p]);
    }
  }
};

/// Decodes `quads` quads of a block from `first` on, a line of 16-bit integers for each inner index.
inline void read_codes(const PlaneLines& planes, CodeMatrix matrix, int block, int first, int quads,
                       std::int16_t* lines) {
  const int lanes = block_lanes(matrix, block);
  const bool full = lanes == line_lanes;
  const unsigned index = static_cast<unsigned>((full ? block * matrix.quads() : 0) + first);
  const I32x16 low_byte = broadcast_bits(0xffu);
  for (int q = 0; q < quads; ++q, lines += quad * line_lanes) {
    I32x16 word = broadcast_bits(0);
    for (int p = 0; p < planes.split.count; ++p) {
      const int width = planes.split.width[p];
      const unsigned bit = (index + static_cast<unsigned>(q)) * static_cast<unsigned>(width);
      const std::byte* line =
          (full ? planes.full[p] : planes.half[p]) + bit / 8 * static_cast<unsigned>(lanes * quad);
      const I32x16 mask = broadcast_bits(((1u << width) - 1u) * 0x01010101u);
      const I32x16 field =
          bit_and(shift_right(load_line(line, lanes), static_cast<int>(bit % 8)), mask);
      word = bit_or(shift_left(word, width), field);
    }
    KVTILT_UNROLL(2)
    for (int b = 0; b < quad; b += 2)
      store_words(lines + b * line_lanes,
                  pack_words(bit_and(shift_right(word, 8 * b), low_byte),
                             bit_and(shift_right(word, 8 * b + 8), low_byte)));
  }
}

/// Nearest, ties to even, of numbers.
inline void store_bf16(void* p, const F32x16& x) {
  const I32x16 bits = bits_of(x);
  const I32x16 half =
      add_ints(bit_and(shift_right(bits, 16), broadcast_bits(1)), broadcast_bits(0x7fffu));
  const I32x16 upper = shift_right_signed(add_ints(bits, half), 16);
  std::int16_t words[2 * line_lanes];
  store_words(words, pack_words(upper, upper));
  std::memcpy(p, words, line_lanes * sizeof(BF16));
}

/// 16 or 8 channels of a row.
inline void store_channels(std::byte* row, ElementType type, const F32x16& x, int count) {
  alignas(line_bytes) std::byte line[line_bytes];
  std::byte* out = count == line_lanes ? row : line;
  if (type == ElementType::F32)
    store(reinterpret_cast<float*>(out), x);
  else if (type == ElementType::F16)
    store_f16(reinterpret_cast<F16*>(out), x);
  else
    store_bf16(out, x);
  if (out == line) std::memcpy(row, line, static_cast<std::size_t>(count) * element_bytes(type));
}

/// Sixteen tokens of 16 or 8 channels.
struct Square {
  int token;  ///< a multiple of 16
  int channel;
  int channels;
};

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
  PlaneLines planes;
  alignas(line_bytes) std::byte lines[2][line_lanes * line_lanes * sizeof(F16)];  ///< scratch

  UnpackSource(Role role_, const TensorLayout& tensor_, const std::byte* block_)
      : role(role_), tensor(tensor_), block(block_), planes(tensor_, block_ + tensor_.codes) {}

  [[nodiscard]] bool keys() const { return role == Role::Keys; }

  /// The rows of a square, token by token: fp16 values, or codes as the bits of fp16.
  SquareRows read(const Square& square) {
    const int outer = keys() ? square.token : square.channel;
    const int inner = keys() ? square.channel : square.token;
    const int block_index = outer / line_lanes;
    SquareRows rows{reinterpret_cast<const F16*>(lines[0]), line_lanes};
    if (tensor.format.quantized())
      read_codes(planes, tensor.matrix, block_index, inner / quad,
                 (keys() ? square.channels : line_lanes) / quad,
                 reinterpret_cast<std::int16_t*>(lines[0]));
    else
      rows = {reinterpret_cast<const F16*>(block + tensor.codes) +
                  half_position(tensor.matrix, outer, inner),
              block_lanes(tensor.matrix, block_index)};
    return keys() ? transpose(rows.data, square.channels) : rows;
  }

 private:
  /// Lines of 16 tokens, one for each channel.
  SquareRows transpose(const F16* from, int channels) {
    const F16* second = channels == line_lanes ? from + line_lanes * line_lanes / 2 : from;
    F16* to = reinterpret_cast<F16*>(lines[1]);
    for (int half = 0; half < line_lanes; half += line_lanes / 2)
      transpose_halves(from + half, second + half, line_lanes, to + half * line_lanes);
    return {to, line_lanes};
  }
};

/// Scales and minima of a square: one of each for a channel, or for a token.
struct SquareMetadata {
  bool of_tokens;
  F32x16 scale;
  F32x16 minimum;
  float scales[line_lanes];
  float minima[line_lanes];

  SquareMetadata() = default;
  SquareMetadata(const UnpackSource& source, const Square& square)
      : of_tokens(source.tensor.group_along_outer != source.keys()) {
    const int along = of_tokens ? square.channel : square.token;
    const int entry = of_tokens ? square.token : square.channel;
    const int entries = of_tokens ? line_lanes : square.channels;
    const F16* from =
        source.tensor.scales(source.block, along / source.tensor.format.group) + entry;
    // Codes are read as multiples of 2^-24. Powers of two cost no bit.
    scale = mul(load_f16(from, entries), broadcast(0x1p24f));
    minimum = load_f16(from + source.tensor.pitch(), entries);
    store(scales, scale);
    store(minima, minimum);
  }

  KVTILT_INLINE F32x16 decode(const F32x16& code, int token) const {
    if (!of_tokens) return multiply_add(code, scale, minimum);
    return multiply_add(code, broadcast(scales[token]), broadcast(minima[token]));
  }
};

/// Tokens first to last-1 of a square; `out` is where its token 0 begins, tokens lie `stride` apart.
inline void unpack_square(UnpackSource& source, const Square& square, Range tokens,
                          ElementType type, std::byte* out, std::ptrdiff_t stride) {
  const SquareRows rows = source.read(square);
  const bool quantized = source.tensor.format.quantized();
  const SquareMetadata metadata = quantized ? SquareMetadata(source, square) : SquareMetadata();
  for (int token = tokens.first; token < tokens.last; ++token) {
    F32x16 value = load_f16(rows.data + token * rows.stride, rows.stride);
    if (quantized) value = metadata.decode(value, token);
    store_channels(out + token * stride, type, value, square.channels);
  }
}

inline void unpack(Role role, const TensorLayout& tensor, const std::byte* block, int slot,
                   const MutableTensorView& rows, const RowRange& range) {
  UnpackSource source(role, tensor, block);
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(element_bytes(rows.type));
  const std::ptrdiff_t stride = rows.token_stride * size;
  const int end = slot + range.count;
  for (int token = slot / line_lanes * line_lanes; token < end; token += line_lanes) {
    std::byte* out = rows.address(range.token, range.head) + (token - slot) * stride;
    for (int channel = 0; channel < rows.dim; channel += line_lanes)
      unpack_square(source, {token, channel, smaller(line_lanes, rows.dim - channel)},
                    {larger(slot - token, 0), smaller(end - token, line_lanes)}, rows.type,
                    out + channel * size, stride);
  }
}
