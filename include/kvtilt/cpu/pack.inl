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

/// Sixteen groups side by side: element e of group g at values[e][g].
struct LaneGroups {
  int count;
  float values[max_group][line_lanes];
};

/// Elements of the groups `entry` to entry + 15 of a band. Lanes past the last group repeat zeros.
inline void gather(const F16* values, const TensorLayout& packed, int first, int entry,
                   LaneGroups& groups) {
  const CodeMatrix matrix = packed.matrix;
  if (!packed.group_along_outer) {
    const int lanes = block_lanes(matrix, entry / line_lanes);
    const F16* lines = values + half_position(matrix, entry, first);
    for (int e = 0; e < groups.count; ++e)
      store(groups.values[e], load_f16(lines + e * lanes, lanes));
    return;
  }
  // Groups lie across lines: transposed as fp16 first, so that conversion goes by lines.
  F16 transposed[max_group][line_lanes] = {};
  const int entries = smaller(line_lanes, matrix.inner - entry);
  for (int e = 0; e < groups.count; e += line_lanes / 2) {  // never across blocks of lanes
    const F16* lines = values + half_position(matrix, first + e, entry);
    const int lanes = block_lanes(matrix, (first + e) / line_lanes);
    for (int g = 0; g < entries; ++g)
      for (int lane = 0; lane < line_lanes / 2; ++lane)
        transposed[e + lane][g] = lines[g * lanes + lane];
  }
  for (int e = 0; e < groups.count; ++e)
    store(groups.values[e], load_f16(transposed[e], line_lanes));
}

/// Squared errors of the nine candidates of MinMse for sixteen groups, exactly as min_mse_error
/// sums them.
inline void search_min_mse(const LaneGroups& groups, const float* minimum, const float* inverse,
                           int bits, std::uint32_t (*errors)[line_lanes]) {
  I32x16 pairs[max_group / 2];  // two elements of a group in a lane
  const F32x16 unit = mul(load(inverse), broadcast(static_cast<float>(1 << (13 - bits))));
  for (int e = 0; e < groups.count; e += 2) {
    const F32x16 even = mul(sub(load(groups.values[e]), load(minimum)), unit);
    const F32x16 odd = mul(sub(load(groups.values[e + 1]), load(minimum)), unit);
    pairs[e / 2] = bit_or(round_to_ints(even), shift_left(round_to_ints(odd), 16));
  }
  for (int index = 0; index < min_mse_candidates; ++index) {
    const MinMseCandidate candidate = min_mse_candidate(bits, index);
    I32x16 sum = broadcast_bits(0);
    for (int pair = 0; pair < groups.count / 2; ++pair)
      sum = add_ints(sum, min_mse_pair_errors(pairs[pair], candidate, bits));
    store_line(reinterpret_cast<std::byte*>(errors[index]), sum, line_lanes);
  }
}

/// Metadata of sixteen groups: minima and maxima by lane, the rest by the scalar specification.
inline void fit_lanes(const LaneGroups& groups, const Format& format, Affine* affine) {
  if (format.rule == RangeRule::Centroids) {
    F16 group[max_group];
    for (int g = 0; g < line_lanes; ++g) {
      for (int e = 0; e < groups.count; ++e) group[e] = to_f16(groups.values[e][g]);
      affine[g] = fit_centroids({group, groups.count, 1});
    }
    return;
  }
  F32x16 low = load(groups.values[0]);
  F32x16 high = low;
  for (int e = 1; e < groups.count; ++e) {
    low = min(low, load(groups.values[e]));
    high = max(high, load(groups.values[e]));
  }
  float minimum[line_lanes];
  float maximum[line_lanes];
  float inverse[line_lanes];
  store(minimum, low);
  store(maximum, high);
  for (int g = 0; g < line_lanes; ++g) {
    affine[g] = range_affine(to_f16(minimum[g]), to_f16(maximum[g]), format.bits);
    minimum[g] = to_float(affine[g].minimum);
    inverse[g] = reciprocal(affine[g].scale);
  }
  if (format.rule != RangeRule::MinMse) return;
  std::uint32_t errors[min_mse_candidates][line_lanes];
  search_min_mse(groups, minimum, inverse, format.bits, errors);
  for (int g = 0; g < line_lanes; ++g) {
    int best = 0;
    for (int index = 1; index < min_mse_candidates; ++index)
      if (errors[index][g] < errors[best][g]) best = index;
    if (best != 0) affine[g] = apply_min_mse(affine[g], min_mse_candidate(format.bits, best));
  }
}

/// Fits every group of a band and stores its metadata.
inline void fit_band(const F16* values, const TensorLayout& packed, int band, std::byte* block,
                     BandMetadata& metadata) {
  const int extent = packed.group_along_outer ? packed.matrix.outer : packed.matrix.inner;
  const int first = band * packed.format.group;
  F16* scales = packed.scales(block, band);
  LaneGroups groups;
  groups.count = smaller(packed.format.group, extent - first);
  for (int entry = 0; entry < packed.pitch(); entry += line_lanes) {
    gather(values, packed, first, entry, groups);
    Affine affine[line_lanes];
    fit_lanes(groups, packed.format, affine);
    for (int g = 0; g < smaller(line_lanes, packed.pitch() - entry); ++g) {
      scales[entry + g] = affine[g].scale;
      scales[packed.pitch() + entry + g] = affine[g].minimum;
      metadata.minimum[entry + g] = to_float(affine[g].minimum);
      metadata.inverse[entry + g] = reciprocal(affine[g].scale);
    }
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
      fit_band(values, packed, band, block, metadata);
      encode_band<Bits>(half, values, packed, band, codes, metadata);
    }
  }
}
