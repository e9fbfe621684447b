// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Quantizes a 16-bit tensor: fits each band (fit.inl), then writes its codes.

/// Quads that are encoded at a time: they fill a line of the narrowest plane.
inline constexpr int encode_quads_max = 8;

/// Computes the codes of quads `first` to first + count - 1 of a block: byte b of a lane of words[k] is
/// the code of inner index 4 * (first + k) + b.
inline void encode_quads(const F16* values, const TensorLayout& packed, int block, int first,
                         int count, const BandMetadata& metadata, I32x16* words) {
  const CodeMatrix matrix = packed.matrix;
  const int lanes = block_lanes(matrix, block);
  const F16* lines = values + half_position(matrix, block * line_lanes, first * quad_codes);
  const I32x16 highest =
      broadcast_bits(static_cast<std::uint32_t>(max_code(packed.format.bits)) * 0x01010101u);
  // A one-bit scale may be tiny beside the range: unclamped codes would not fit an integer.
  const bool unbounded = packed.format.rule == RangeRule::Centroids;
  const bool along_outer = packed.group_along_outer;
  const float* minima = metadata.minimum + (along_outer ? first * quad_codes : block * line_lanes);
  const float* inverses =
      metadata.inverse + (along_outer ? first * quad_codes : block * line_lanes);
  F32x16 minimum = load(minima);
  F32x16 inverse = load(inverses);
  for (int k = 0; k < count; ++k) {
    I32x16 codes[quad_codes];
    KVTILT_UNROLL(4)
    for (int b = 0; b < quad_codes; ++b) {
      const int i = k * quad_codes + b;
      if (along_outer) {
        minimum = broadcast(minima[i]);
        inverse = broadcast(inverses[i]);
      }
      F32x16 code = mul(sub(load_f16(lines + i * lanes, lanes), minimum), inverse);
      if (unbounded) code = min(code, broadcast(1.0f));
      codes[b] = round_to_ints(code);
    }
    words[k] = min_bytes(to_bytes(codes), highest);
  }
}

/// ORs one quad of codes into the lines that hold it.
template <int Bits>
inline void write_quad(std::byte* codes, CodeMatrix matrix, int lanes, int index,
                       const I32x16& word) {
  constexpr Planes split = planes(Bits);
  int below = Bits;
  for (int p = 0; p < split.count; ++p) {
    const int width = split.width[p];
    const int fields = 8 / width;
    below -= width;
    const std::uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
    const I32x16 field = bit_and(shift_right(word, below), broadcast_bits(mask));
    std::byte* line = codes + (lanes == line_lanes ? 0 : full_plane_bytes(matrix, width)) +
                      static_cast<std::ptrdiff_t>(index / fields) * lanes * lane_bytes;
    store_line(line, bit_or(load_line(line, lanes), shift_left(field, index % fields * width)),
               lanes);
    codes += plane_bytes(matrix, width);
  }
}

/// Composes the lines of a unit of quads, which hold no other quad, and stores each once.
template <int Bits>
inline void write_unit(std::byte* codes, CodeMatrix matrix, int lanes, int index,
                       const I32x16* words) {
  constexpr int unit = unit_quads(Bits);
  constexpr Planes split = planes(Bits);
  int below = Bits;
  KVTILT_UNROLL(3)
  for (int p = 0; p < split.count; ++p) {
    const int width = split.width[p];
    const int fields = 8 / width;
    below -= width;
    const I32x16 mask = broadcast_bits(((1u << width) - 1u) * 0x01010101u);
    std::byte* line = codes + (lanes == line_lanes ? 0 : full_plane_bytes(matrix, width)) +
                      static_cast<std::ptrdiff_t>(index / fields) * lanes * lane_bytes;
    I32x16 bytes;
    KVTILT_UNROLL(8)
    for (int k = 0; k < unit; ++k) {
      const int field = k % fields;
      I32x16 word = words[k];
      if (split.count > 1) word = bit_and(shift_right(word, below), mask);
      bytes = field == 0 ? word : bit_or(bytes, shift_left(word, field * width));
      if (field == fields - 1) store_line(line + k / fields * lanes * lane_bytes, bytes, lanes);
    }
    codes += plane_bytes(matrix, width);
  }
}

template <int Bits>
inline void encode_band(const F16* values, const TensorLayout& packed, int band, std::byte* codes,
                        const BandMetadata& metadata) {
  constexpr int unit = unit_quads(Bits);
  const CodeMatrix matrix = packed.matrix;
  const bool along_outer = packed.group_along_outer;
  const int first = band * packed.format.group;
  const int last = smaller(first + packed.format.group, along_outer ? matrix.outer : matrix.inner);
  const Range blocks = along_outer ? Range{first / line_lanes, (last + line_lanes - 1) / line_lanes}
                                   : Range{0, matrix.blocks()};
  const Range quads =
      along_outer ? Range{0, matrix.quads()} : Range{first / quad_codes, last / quad_codes};
  I32x16 words[encode_quads_max];
  for (int block = blocks.first; block < blocks.last; ++block) {
    const int lanes = block_lanes(matrix, block);
    const int block_index = lanes == line_lanes ? block * matrix.quads() : 0;
    for (int q = quads.first; q < quads.last; q += encode_quads_max) {
      const int count = smaller(encode_quads_max, quads.last - q);
      encode_quads(values, packed, block, q, count, metadata, words);
      const int index = block_index + q;
      int k = 0;
      if (index % unit == 0)
        for (; k + unit <= count; k += unit)
          write_unit<Bits>(codes, matrix, lanes, index + k, words + k);
      for (; k < count; ++k) write_quad<Bits>(codes, matrix, lanes, index + k, words[k]);
    }
  }
}

template <int Bits>
void pack(const TensorLayout& half, const std::byte* half_block, const TensorLayout& packed,
          std::byte* block) {
  std::byte* codes = block + packed.codes;
  if constexpr (Bits == half_bits) {
    std::memcpy(codes, half_block + half.codes, code_bytes(packed.matrix, half_bits));
  } else {
    const F16* values = reinterpret_cast<const F16*>(half_block + half.codes);
    BandMetadata metadata;
    for (int band = 0; band < packed.bands(); ++band) {
      fit_band(values, packed, band, block, metadata);
      encode_band<Bits>(values, packed, band, codes, metadata);
    }
  }
}
