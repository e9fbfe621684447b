// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.

inline void to_f16_row(const void* row, ElementType type, int count, F16* out) {
  if (type == ElementType::F16) {
    std::memcpy(out, row, static_cast<std::size_t>(count) * sizeof(F16));
    return;
  }
  int i = 0;
  if (type == ElementType::F32) {
    const float* values = static_cast<const float*>(row);
    for (; i + line_lanes <= count; i += line_lanes) store_f16(out + i, load(values + i));
    for (; i < count; ++i) out[i] = to_f16(values[i]);
  } else {
    const BF16* values = static_cast<const BF16*>(row);
    for (; i < count; ++i) out[i] = to_f16(to_float(values[i]));
  }
}

/// Codes of one line's worth of values, one per lane.
inline I32x16 encode_lanes(const F32x16& values, const F32x16& minimum, const F32x16& inverse,
                           bool clamped, float highest) {
  F32x16 code = mul(sub(values, minimum), inverse);
  if (clamped) code = min(max(code, broadcast(0.0f)), broadcast(highest));
  return round_to_ints(code);
}

/// ORs one quad of codes (byte b of a lane is the code of 4 * quad + b) into the planes.
template <int Bits>
inline void write_quad(std::byte* codes, CodeMatrix matrix, int block, int quad_index,
                       const I32x16& word) {
  constexpr Planes split = planes(Bits);
  const int lanes = block_lanes(matrix, block);
  const bool full = lanes == line_lanes;
  const int index = (full ? block * matrix.quads() : 0) + quad_index;
  int below = Bits;
  KVTILT_UNROLL(3)
  for (int p = 0; p < split.count; ++p) {
    const int width = split.width[p];
    const int fields = 8 / width;
    below -= width;
    const std::uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
    const I32x16 field = bit_and(shift_right(word, below), broadcast_bits(mask));
    std::byte* line = codes + (full ? 0 : full_plane_bytes(matrix, width)) +
                      static_cast<std::ptrdiff_t>(index / fields) * lanes * quad;
    store_line(line, bit_or(load_line(line, lanes), shift_left(field, index % fields * width)),
               lanes);
    codes += plane_bytes(matrix, width);
  }
}

/// Scales, minima and reciprocals of the groups of a band.
struct BandMetadata {
  float minimum[max_head_dim + line_lanes];
  float inverse[max_head_dim + line_lanes];
};

/// Gathers each group of a band and applies the scalar specification to it.
inline void fit_band(const TensorLayout& half, const F16* values, const TensorLayout& packed,
                     int band, std::byte* block, BandMetadata& metadata) {
  const CodeMatrix matrix = packed.matrix;
  const int extent = packed.group_along_outer ? matrix.outer : matrix.inner;
  const int first = band * packed.format.group;
  const int count = smaller(packed.format.group, extent - first);
  F16* scales = packed.scales(block, band);
  F16 group[max_group];
  for (int entry = 0; entry < packed.pitch(); ++entry) {
    for (int i = 0; i < count; ++i)
      group[i] = packed.group_along_outer ? values[half_position(half.matrix, first + i, entry)]
                                          : values[half_position(half.matrix, entry, first + i)];
    const Affine affine = fit({group, count, 1}, packed.format.bits, packed.format.rule);
    scales[entry] = affine.scale;
    scales[packed.pitch() + entry] = affine.minimum;
    metadata.minimum[entry] = to_float(affine.minimum);
    metadata.inverse[entry] = reciprocal(affine.scale);
  }
}

template <int Bits>
inline void encode_band(const TensorLayout& half, const F16* values, const TensorLayout& packed,
                        int band, std::byte* codes, const BandMetadata& metadata) {
  const CodeMatrix matrix = packed.matrix;
  const bool along_outer = packed.group_along_outer;
  const bool clamped = packed.format.rule != RangeRule::MinMax;
  const float highest = static_cast<float>(max_code(Bits));
  const int first = band * packed.format.group;
  const int last = smaller(first + packed.format.group, along_outer ? matrix.outer : matrix.inner);
  const Range blocks = along_outer ? Range{first / line_lanes, (last + line_lanes - 1) / line_lanes}
                                   : Range{0, matrix.blocks()};
  const Range inner = along_outer ? Range{0, matrix.inner} : Range{first, last};
  for (int index = blocks.first; index < blocks.last; ++index) {
    const int lanes = block_lanes(half.matrix, index);
    const F16* lines = values + static_cast<std::ptrdiff_t>(index) * line_lanes * matrix.inner;
    for (int q = inner.first / quad; q * quad < inner.last; ++q) {
      I32x16 word = broadcast_bits(0);
      KVTILT_UNROLL(4)
      for (int b = 0; b < quad; ++b) {
        const int i = q * quad + b;
        const int lane_entry = index * line_lanes;
        const F32x16 minimum =
            along_outer ? broadcast(metadata.minimum[i]) : load(metadata.minimum + lane_entry);
        const F32x16 inverse =
            along_outer ? broadcast(metadata.inverse[i]) : load(metadata.inverse + lane_entry);
        const F32x16 value = load_f16(lines + static_cast<std::ptrdiff_t>(i) * lanes, lanes);
        word = bit_or(word,
                      shift_left(encode_lanes(value, minimum, inverse, clamped, highest), 8 * b));
      }
      write_quad<Bits>(codes, matrix, index, q, word);
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
    BandMetadata metadata{};
    for (int band = 0; band < packed.bands(); ++band) {
      fit_band(half, values, packed, band, block, metadata);
      encode_band<Bits>(half, values, packed, band, codes, metadata);
    }
  }
}
