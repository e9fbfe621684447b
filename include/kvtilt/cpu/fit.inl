// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Fits scales and minima to groups, sixteen groups at a time.

/// Sixteen groups side by side: element e of group g is lines[e * stride + g]. Only the first
/// `lanes` groups exist.
struct LaneGroups {
  const F16* lines;
  int stride;
  int lanes;
  int count;

  KVTILT_INLINE F32x16 element(int e) const { return load_f16(lines + e * stride, lanes); }
};

/// Scales and minima of sixteen groups.
struct LaneAffine {
  F32x16 scale;
  F32x16 minimum;
};

/// Gathers the groups `entry` to entry + 15 of a band, which begins at index `first` of the groups'
/// axis. Groups along outer lie across lines, and are transposed into `transposed`.
inline LaneGroups gather(const F16* values, const TensorLayout& packed, int first, int count,
                         int entry, F16* transposed) {
  const CodeMatrix matrix = packed.matrix;
  if (!packed.group_along_outer) {
    const int lanes = block_lanes(matrix, entry / line_lanes);
    return {values + half_position(matrix, entry, first), lanes, lanes, count};
  }
  for (int e = 0; e < count; e += 8) {  // never across blocks of lanes
    const F16* rows = values + half_position(matrix, first + e, entry);
    const int lanes = block_lanes(matrix, (first + e) / line_lanes);
    const int second = matrix.inner - entry > 8 ? 8 * lanes : 0;  // no row past the end
    transpose_halves(rows, rows + second, lanes, transposed + e * line_lanes);
  }
  return {transposed, line_lanes, line_lanes, count};
}

/// -0 becomes +0.
inline F32x16 plus_zero(const F32x16& x) {
  return keep(x, nonzero(add_ints(bits_of(x), broadcast_bits(0x80000000u))), 0.0f);
}

/// range_affine() of affine.hpp with a shorter search: the smallest scale that covers the range is the
/// fp16 nearest to range / n, or the next above it.
inline LaneAffine range_lanes(const LaneGroups& groups, int bits) {
  F32x16 low = groups.element(0);
  F32x16 high = low;
  for (int e = 1; e < groups.count; ++e) {
    const F32x16 value = groups.element(e);
    low = min(low, value);
    high = max(high, value);
  }
  const F32x16 minimum = plus_zero(low);
  const F32x16 range = sub(plus_zero(high), minimum);
  const float levels = static_cast<float>(max_code(bits));
  const I32x16 nearest = to_f16_bits(mul(range, broadcast(1.0f / levels)));
  const F32x16 covered = mul(from_f16_bits(nearest), broadcast(levels));
  const I32x16 too_small = shift_right_signed(sub_ints(bits_of(covered), bits_of(range)), 31);
  return {from_f16_bits(sub_ints(nearest, too_small)), minimum};
}

/// Sums of code * y and code^2 over each of sixteen groups, for the three candidates of one i.
struct MinMseSums {
  I32x16 products[3];
  I32x16 squares[3];
};

/// Clamps y to 0..n * step instead of codes to 0..n: the same, but candidates share the clamping at 0.
inline MinMseSums sum_min_mse(const I32x16* units, int pairs, const MinMseCandidate* candidates,
                              int levels) {
  const auto both = 0x10001u;
  MinMseSums sums;
  I32x16 ends[3];
  I32x16 multipliers[3];
  KVTILT_UNROLL(3)
  for (int j = 0; j < 3; ++j) {
    sums.products[j] = sums.squares[j] = broadcast_bits(0);
    ends[j] = broadcast_bits(static_cast<std::uint32_t>(levels * candidates[j].step) * both);
    multipliers[j] = broadcast_bits(static_cast<std::uint32_t>(candidates[j].multiplier) * both);
  }
  const I32x16 offset = broadcast_bits(static_cast<std::uint32_t>(candidates[0].offset) * both);
  for (int pair = 0; pair < pairs; ++pair) {
    const I32x16 y = sub_pairs(units[pair], offset);
    const I32x16 raised = max_pairs(y, broadcast_bits(0));
    KVTILT_UNROLL(3)
    for (int j = 0; j < 3; ++j) {
      const I32x16 codes = multiply_pairs(min_pairs(raised, ends[j]), multipliers[j]);
      sums.products[j] = dot_pairs(sums.products[j], codes, y);
      sums.squares[j] = dot_pairs(sums.squares[j], codes, codes);
    }
  }
  return sums;
}

/// The search of fit_min_mse(), given the range. Squared errors are computed modulo 2^32, without the
/// sum of u^2 that all candidates share; their differences fit 32 bits.
inline LaneAffine search_min_mse(const LaneGroups& groups, const LaneAffine& range, int bits) {
  const MinMseCandidate* grid = min_mse_grids[bits - 2].candidates;
  I32x16 units[max_group / 2];  // u: two elements of a group in each lane
  I32x16 total = broadcast_bits(0);
  const F32x16 unit = mul(reciprocal(range.scale), broadcast(static_cast<float>(1 << (13 - bits))));
  for (int e = 0; e < groups.count; e += 2) {
    const I32x16 even = round_to_ints(mul(sub(groups.element(e), range.minimum), unit));
    const I32x16 odd = round_to_ints(mul(sub(groups.element(e + 1), range.minimum), unit));
    units[e / 2] = bit_or(even, shift_left(odd, 16));
    total = add_ints(total, add_ints(even, odd));
  }
  I32x16 least = broadcast_bits(0);
  F32x16 rise = broadcast(0.0f);
  F32x16 shrink = broadcast(1.0f);
  for (int i = 0; i < 3; ++i) {
    const MinMseCandidate* candidates = grid + 3 * i;
    const MinMseSums sums = sum_min_mse(units, groups.count / 2, candidates, max_code(bits));
    const std::uint32_t offset = static_cast<std::uint32_t>(candidates->offset);
    const I32x16 shift =  // sum of y^2 - u^2
        sub_ints(broadcast_bits(static_cast<std::uint32_t>(groups.count) * offset * offset),
                 mul_ints(total, broadcast_bits(2 * offset)));
    for (int j = 0; j < 3; ++j) {
      const I32x16 step = broadcast_bits(static_cast<std::uint32_t>(candidates[j].step));
      const I32x16 twice = add_ints(sums.products[j], sums.products[j]);
      const I32x16 error =
          add_ints(shift, mul_ints(step, sub_ints(mul_ints(step, sums.squares[j]), twice)));
      if (i == 0 && j == 0) least = error;
      const I32x16 change = sub_ints(error, least);
      const I32x16 better = shift_right_signed(change, 31);
      least = add_ints(least, bit_and(change, better));
      const LaneMask worse = static_cast<LaneMask>(~nonzero(better));
      rise = keep(rise, worse, candidates[j].rise);
      shrink = keep(shrink, worse, candidates[j].shrink);
    }
  }
  // The products are exact; candidate 0 leaves scale and minimum unchanged.
  const I32x16 scale = to_f16_bits(mul(range.scale, shrink));
  const I32x16 minimum = to_f16_bits(add(range.minimum, mul(range.scale, rise)));
  return {from_f16_bits(scale), plus_zero(from_f16_bits(minimum))};
}

/// Fits one-bit codes, group by group: their sums need integers of up to 40 bits.
inline LaneAffine fit_centroid_lanes(const LaneGroups& groups) {
  float scales[line_lanes] = {};
  float minima[line_lanes] = {};
  for (int g = 0; g < groups.lanes; ++g) {
    const Affine affine = fit_centroids({groups.lines + g, groups.count, groups.stride});
    scales[g] = to_float(affine.scale);
    minima[g] = to_float(affine.minimum);
  }
  return {load(scales), load(minima)};
}

inline LaneAffine fit_lanes(const LaneGroups& groups, const Format& format) {
  if (format.rule == RangeRule::Centroids) return fit_centroid_lanes(groups);
  const LaneAffine range = range_lanes(groups, format.bits);
  return format.rule == RangeRule::MinMse ? search_min_mse(groups, range, format.bits) : range;
}

/// Minima and reciprocal scales of a band's groups.
struct BandMetadata {
  float minimum[max_head_dim + line_lanes];
  float inverse[max_head_dim + line_lanes];
};

/// Fits every group of a band and stores its metadata.
inline void fit_band(const F16* values, const TensorLayout& packed, int band, std::byte* block,
                     BandMetadata& metadata) {
  const int extent = packed.group_along_outer ? packed.matrix.outer : packed.matrix.inner;
  const int first = band * packed.format.group;
  const int count = smaller(packed.format.group, extent - first);
  F16* scales = packed.scales(block, band);
  // An array of F16 would be zeroed.
  alignas(line_bytes) std::byte scratch[max_group * line_lanes * sizeof(F16)];
  F16* transposed = reinterpret_cast<F16*>(scratch);
  F16 line[line_lanes];
  for (int entry = 0; entry < packed.pitch(); entry += line_lanes) {
    const LaneAffine affine =
        fit_lanes(gather(values, packed, first, count, entry, transposed), packed.format);
    store(metadata.minimum + entry, affine.minimum);
    store(metadata.inverse + entry, reciprocal(affine.scale));
    const std::size_t bytes =
        static_cast<std::size_t>(smaller(line_lanes, packed.pitch() - entry)) * sizeof(F16);
    store_f16(line, affine.scale);
    std::memcpy(scales + entry, line, bytes);
    store_f16(line, affine.minimum);
    std::memcpy(scales + packed.pitch() + entry, line, bytes);
  }
}
