// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Turns coefficients into weights, lets the dot product of a width meet the codes, and puts scales
// and minima back. Knows no widths: those are in dot.inl.

/// Scratch memory of a contraction, carved.
struct ContractScratch {
  Rows<float> exact;
  Rows<std::int8_t> low;
  Rows<std::int8_t> high;
  std::uint16_t* high_quads;

  ContractScratch(float* scratch, CodeMatrix matrix) {
    const std::ptrdiff_t stride = (larger(matrix.outer, matrix.inner) + 31) / 32 * 32;
    exact = {scratch, stride};
    auto* bytes = reinterpret_cast<std::int8_t*>(scratch + row_tile * stride);
    low = {bytes, stride};
    high = {bytes + row_tile * stride, stride};
    high_quads = reinterpret_cast<std::uint16_t*>(bytes + 2 * row_tile * stride);
  }

  [[nodiscard]] Weights weights(int high_count) const {
    return {{exact.data, exact.stride},
            {low.data, low.stride},
            {high.data, high.stride},
            high_quads,
            high_count};
  }
};

/// The extent of the weights a dot product may touch: whole units around `inner`.
inline Range padded_units(Range inner) {
  return {inner.first / 32 * 32, (inner.last + 31) / 32 * 32};
}

/// Scale of the integer weights (DESIGN 6): the largest weight in 7 bits, or finer where the
/// rounding of `count` weights would show beside that of n-level codes; then some need two planes.
inline float weight_step(float largest, float squares, int count, int n) {
  const float one_plane = largest * (1.0f / 127.0f);
  const float share =
      0.36f / static_cast<float>(n);  // of the rms: error below a tenth of the codes'
  const float mean_square = squares / static_cast<float>(count);
  const float limit = one_plane * one_plane;
  return share * share * mean_square < limit ? share * std::sqrt(mean_square) : one_plane;
}

/// Sums over the weights of up to four rows, in lanes.
struct FoldedRows {
  F32x16 constant[row_tile];  ///< coefficient * minimum
  F32x16 total[row_tile];     ///< weights
  F32x16 square[row_tile];    ///< their squares
  F32x16 largest[row_tile];   ///< their magnitudes
};

/// Multiplies coefficients by the scales of a band. `scales` (minima: pitch on) lie along inner, or
/// are null if they lie along outer. Weights are 0 outside `inner` within `units`.
template <int Tile>
inline void fold(const Contraction& contraction, int row, Range inner, Range units,
                 const F16* scales, const Rows<float>& exact, FoldedRows& folded) {
  const int pitch = contraction.tensor->pitch();
  const std::ptrdiff_t next = contraction.next;
  const F32x16 zero = broadcast(0.0f);
  const float* in[Tile];  // locals: a vector store may change anything behind a reference
  float* out[Tile];
  F32x16 constant[Tile];
  F32x16 total[Tile];
  F32x16 square[Tile];
  F32x16 largest[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    in[r] = contraction.coefficients[row + r];
    out[r] = exact[r];
    constant[r] = total[r] = square[r] = largest[r] = zero;
  }
  for (int i = units.first; i < units.last; i += line_lanes) {
    const LaneMask inside = lanes_between(inner.first - i, inner.last - i);
    if (inside == 0) {
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) store(out[r] + i, zero);
      continue;
    }
    F32x16 scale = broadcast(1.0f);
    F32x16 minimum = zero;
    if (scales != nullptr) {
      const int lanes = smaller(line_lanes, pitch - i);
      scale = keep(load_f16(scales + i, lanes), inside, 0.0f);
      minimum = keep(load_f16(scales + pitch + i, lanes), inside, 0.0f);
      prefetch(scales + i, next);
      prefetch(scales + pitch + i, next);
    }
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      const F32x16 coefficient = keep(load(in[r] + i), inside, 0.0f);
      const F32x16 weight = mul(coefficient, scale);
      store(out[r] + i, weight);
      constant[r] = multiply_add(coefficient, minimum, constant[r]);
      total[r] = add(total[r], weight);
      square[r] = multiply_add(weight, weight, square[r]);
      largest[r] = max(largest[r], magnitude(weight));
    }
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    const int source = r < Tile ? r : 0;  // all rows are set: they are reduced together
    folded.constant[r] = constant[source];
    folded.total[r] = total[source];
    folded.square[r] = square[source];
    folded.largest[r] = largest[source];
  }
}

/// Rounds exact weights to integers and lists the quads that need the high plane. Returns the
/// lanes' sums of the integers and how many quads are listed.
template <int Tile, bool TwoPlanes>
inline int round_weights(const ContractScratch& scratch, Range units, const RowTerms* terms,
                         F32x16* sums) {
  const float* exact[Tile];
  std::int8_t* low[Tile];
  F32x16 inverse[Tile];
  I32x16 sum[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    exact[r] = scratch.exact[r];
    low[r] = scratch.low[r];
    inverse[r] = broadcast(terms[r].step > 0.0f ? 1.0f / terms[r].step : 0.0f);
    sum[r] = broadcast_bits(0);
  }
  int high_count = 0;
  for (int i = units.first; i < units.last; i += line_lanes) {
    I32x16 high[Tile];
    I32x16 any = broadcast_bits(0);
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      const I32x16 k = to_nearest_ints(mul(load(exact[r] + i), inverse[r]));
      sum[r] = add_ints(sum[r], k);
      store_low_bytes(low[r] + i, k);
      if (!TwoPlanes) continue;
      high[r] = shift_right_signed(add_ints(k, broadcast_bits(128)), 8);
      any = bit_or(any, high[r]);
    }
    if (!TwoPlanes) continue;
    const unsigned lanes = nonzero(any);
    if (lanes == 0) continue;
    for (int r = 0; r < Tile; ++r) store_low_bytes(scratch.high[r] + i, high[r]);
    for (int q = 0; q < quad; ++q)
      if ((lanes >> (q * quad) & 0xfu) != 0)
        scratch.high_quads[high_count++] = static_cast<std::uint16_t>(i / quad + q);
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) sums[r] = to_floats(sum[r]);
  return high_count;
}

/// Weights and terms of one band for `Tile` rows.
template <int Tile>
inline Weights weigh(const Contraction& contraction, int row, Range inner, const F16* scales,
                     Sums arithmetic, const ContractScratch& scratch, RowTerms* terms) {
  const Range units = padded_units(inner);
  FoldedRows folded;
  fold<Tile>(contraction, row, inner, units, scales, scratch.exact, folded);
  float total[row_tile];
  float offset[row_tile];
  reduce_add(folded.total, total);
  int high_count = 0;
  if (arithmetic == Sums::Float) {
    reduce_add(folded.constant, offset);
    for (int r = 0; r < Tile; ++r) terms[r].step = 1.0f;
  } else {
    const TensorLayout& tensor = *contraction.tensor;
    const int n = max_code(tensor.format.bits);
    // All of the band, though a row may see less: what other rows see must not change a bit.
    const int extent = tensor.group_along_outer ? tensor.matrix.inner : tensor.format.group;
    float square[row_tile];
    float largest[row_tile];
    reduce_add(folded.square, square);
    reduce_max(folded.largest, largest);
    bool two_planes = false;
    for (int r = 0; r < Tile; ++r) {
      terms[r].step = weight_step(largest[r], square[r], extent, n);
      two_planes = two_planes || largest[r] > 127.25f * terms[r].step;  // rounds to 128
    }
    F32x16 integers[Tile];
    high_count = two_planes ? round_weights<Tile, true>(scratch, units, terms, integers)
                            : round_weights<Tile, false>(scratch, units, terms, integers);
    // What rounding took from the weights comes back times the mean code.
    const F32x16 mean_code = broadcast(0.5f * static_cast<float>(n));
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      const F32x16 lost = multiply_add(integers[r], broadcast(-terms[r].step), folded.total[r]);
      folded.constant[r] = multiply_add(lost, mean_code, folded.constant[r]);
    }
    reduce_add(folded.constant, offset);
  }
  for (int r = 0; r < Tile; ++r) {
    terms[r].offset = offset[r];
    terms[r].total = total[r];
  }
  return scratch.weights(high_count);
}

/// One band of one tile of rows.
inline void contract_band(const Contraction& contraction, int row, int rows, Range outer,
                          Range inner, const F16* scales, bool along_outer, Sums arithmetic,
                          DotFn dot, const ContractScratch& scratch) {
  RowTerms terms[row_tile];
  const F16* inner_scales = along_outer ? scales : nullptr;
  const Weights weights =
      rows == row_tile
          ? weigh<row_tile>(contraction, row, inner, inner_scales, arithmetic, scratch, terms)
          : weigh<1>(contraction, row, inner, inner_scales, arithmetic, scratch, terms);
  Contraction part = contraction;
  part.inner = inner;
  const Range blocks{outer.first / line_lanes, (outer.last + line_lanes - 1) / line_lanes};
  dot(part, blocks, row, rows, weights, terms, along_outer ? nullptr : scales);
}

/// 16-bit tensors: the coefficients are the weights.
inline void contract_halves(const Contraction& contraction, int row, int rows, DotFn dot) {
  Weights weights{};
  weights.exact = {contraction.coefficients[row], contraction.coefficients.stride};
  const Range blocks{contraction.outer.first / line_lanes,
                     (contraction.outer.last + line_lanes - 1) / line_lanes};
  const RowTerms plain[row_tile] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
  dot(contraction, blocks, row, rows, weights, plain, nullptr);
}

inline void contract(const Contraction& contraction, Sums arithmetic, DotFn dot) {
  const TensorLayout& tensor = *contraction.tensor;
  const Range& outer = contraction.outer;
  const Range& inner = contraction.inner;
  const int group = tensor.format.group;
  const bool along_outer = tensor.group_along_outer;
  const Range& grouped = along_outer ? outer : inner;
  const ContractScratch scratch(contraction.scratch, tensor.matrix);
  for (int row = 0; row < contraction.rows;) {
    const int rows = contraction.rows - row >= row_tile ? row_tile : 1;
    if (!tensor.format.quantized()) {
      contract_halves(contraction, row, rows, dot);
    } else {
      for (int band = grouped.first / group; band * group < grouped.last; ++band) {
        const Range part{larger(grouped.first, band * group),
                         smaller(grouped.last, (band + 1) * group)};
        contract_band(contraction, row, rows, along_outer ? part : outer,
                      along_outer ? inner : part, tensor.scales(contraction.block, band),
                      along_outer, arithmetic, dot, scratch);
      }
    }
    row += rows;
  }
}
