// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Turns coefficients into weights, lets the dot product of a width meet the codes, and puts scales
// and minima back. Knows no widths: those are in dot.inl.

/// Where the weights of a band are made: scratch memory, carved.
struct WeightScratch {
  float* exact;
  std::int8_t* integers;

  explicit WeightScratch(const Contraction& contraction)
      : exact(reinterpret_cast<float*>(contraction.scratch)),
        integers(reinterpret_cast<std::int8_t*>(
            exact + padded_weights(contraction.tensor->matrix.inner))) {}
};

/// The extent of the weights a dot product may touch: whole units around `inner`.
inline Range padded_units(Range inner) {
  return {inner.first / 32 * 32, (inner.last + 31) / 32 * 32};
}

inline Range blocks_of(Range outer) {
  return {outer.first / line_lanes, (outer.last + line_lanes - 1) / line_lanes};
}

/// Sums over the weights of a band.
struct FoldedRows {
  F32x16 linear[row_tile];  ///< coefficient * (minimum + mean code * scale), or coefficients alone
  float largest[row_tile];  ///< magnitude of a weight
  float square[row_tile];   ///< sum of the weights' squares, if asked for
};

/// One line of fold(). `Partial`: only the lanes of `inside` count, others may hold anything.
template <int Tile, bool Squares, bool Partial>
KVTILT_INLINE void fold_line(const float* const (&in)[Tile], float* out, int i, LaneMask inside,
                             const F32x16& scale, const F32x16& middle, F32x16 (&linear)[Tile],
                             F32x16 (&largest)[Tile], F32x16 (&square)[Tile]) {
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    F32x16 coefficient = load(in[r] + i);
    if (Partial) coefficient = keep(coefficient, inside, 0.0f);
    const F32x16 weight = mul(coefficient, scale);
    store(out + r * line_lanes, weight);
    linear[r] = multiply_add(coefficient, middle, linear[r]);
    largest[r] = max_magnitude(largest[r], weight);
    if (Squares) square[r] = multiply_add(weight, weight, square[r]);
  }
}

/// Multiplies coefficients by the scales of a band. `scales` (minima: pitch on) lie along inner, or
/// are null if they lie along outer. Weights are 0 outside `inner` within its units.
template <int Tile, bool Squares>
inline void fold(const Contraction& contraction, int row, Range inner, const F16* scales,
                 float mean_code, float* exact, FoldedRows& folded) {
  const int pitch = contraction.tensor->pitch();
  const Range units = padded_units(inner);
  const std::ptrdiff_t next = contraction.next;
  const F32x16 mean = broadcast(mean_code);
  const float* in[Tile];  // locals: a vector store may change anything behind a reference
  F32x16 linear[Tile];
  F32x16 largest[Tile];
  F32x16 square[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    in[r] = contraction.coefficients[row + r];
    linear[r] = largest[r] = square[r] = broadcast(0.0f);
  }
  F32x16 scale = broadcast(1.0f);
  F32x16 middle = scale;
  for (int i = units.first; i < units.last; i += line_lanes) {
    float* out = exact + std::ptrdiff_t{i} * row_tile;
    if (scales != nullptr) {
      prefetch(scales + i, next);
      prefetch(scales + pitch + i, next);
    }
    if (i >= inner.first && i + line_lanes <= inner.last) {
      if (scales != nullptr) {
        scale = load_f16(scales + i, line_lanes);
        middle = multiply_add(scale, mean, load_f16(scales + pitch + i, line_lanes));
      }
      fold_line<Tile, Squares, false>(in, out, i, 0, scale, middle, linear, largest, square);
      continue;
    }
    const LaneMask inside = lanes_between(inner.first - i, inner.last - i);
    if (inside == 0) {
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) store(out + r * line_lanes, broadcast(0.0f));
      continue;
    }
    if (scales != nullptr) {
      const int lanes = smaller(line_lanes, pitch - i);
      scale = keep(load_f16(scales + i, lanes), inside, 0.0f);
      middle = keep(load_f16(scales + pitch + i, lanes), inside, 0.0f);
      middle = multiply_add(scale, mean, middle);
    }
    fold_line<Tile, Squares, true>(in, out, i, inside, scale, middle, linear, largest, square);
  }
  F32x16 all_largest[row_tile];  // rows are reduced four at a time
  F32x16 all_square[row_tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    const int source = r < Tile ? r : 0;
    folded.linear[r] = linear[source];
    all_largest[r] = largest[source];
    all_square[r] = square[source];
  }
  reduce_max(all_largest, folded.largest);
  if (Squares) reduce_add(all_square, folded.square);
}

/// Rounds exact weights to integers of one byte or, if wide, two. Sums them in lanes.
template <int Tile, bool Wide>
inline void round_weights(const WeightScratch& scratch, Range units, const float* inverse_steps,
                          F32x16* sums) {
  F32x16 inverse[Tile];
  I32x16 sum[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    inverse[r] = broadcast(inverse_steps[r]);
    sum[r] = broadcast_bits(0);
  }
  for (int i = units.first; i < units.last; i += 2 * line_lanes) {
    const float* exact = scratch.exact + std::ptrdiff_t{i} * row_tile;
    std::int8_t* integers = scratch.integers + std::ptrdiff_t{i} * row_tile * (Wide ? 2 : 1);
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      const float* weights = exact + r * line_lanes;
      const I32x16 first = to_nearest_ints(mul(load(weights), inverse[r]));
      const I32x16 second = to_nearest_ints(mul(load(weights + row_tile * line_lanes), inverse[r]));
      sum[r] = add_ints(sum[r], add_ints(first, second));
      if (Wide)
        store_words(reinterpret_cast<std::int16_t*>(integers) + r * 2 * line_lanes, first, second);
      else
        store_low_bytes(integers + r * 2 * line_lanes, first, second);
    }
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) sums[r] = to_floats(sum[r]);
}

/// Largest magnitude of a wide weight: 32 bits hold the sum of 1024 products with 8-bit codes.
inline constexpr float widest_weight = 8191.0f;
static_assert(max_head_dim <= 1024);

/// How the weights of a tensor become integers.
struct Rounding {
  bool integers;
  bool wide;           ///< always
  bool refined;        ///< one byte may be too coarse
  float levels;        ///< of a weight's magnitude
  float unit;          ///< 1 / levels
  float square_share;  ///< coarsest step^2 / sum of squares, if refined
  float mean_code;     ///< 0 in float32

  Rounding(const Contraction& contraction, Sums sums) : integers(sums == Sums::Integer) {
    const TensorLayout& tensor = *contraction.tensor;
    const float n = static_cast<float>(max_code(tensor.format.bits));
    wide = tensor.format.bits > widest_for_bytes;
    levels = wide ? widest_weight : 127.0f;
    unit = wide ? 1.0f / widest_weight : 1.0f / 127.0f;
    // All of the band, though a row may see less: what other rows see must not change a bit.
    const int extent = tensor.group_along_outer ? tensor.matrix.inner : tensor.format.group;
    const float share = contraction.step_share / n;
    square_share = share * share / static_cast<float>(extent);
    // The largest of `extent` weights is at most the root of the sum of their squares.
    refined =
        integers && tensor.format.bits > always_for_bytes && square_share * levels * levels < 1.0f;
    mean_code = integers ? 0.5f * n : 0.0f;
  }
};

/// Steps of a tile's integer weights, and whether they then need two bytes.
struct Steps {
  float step[row_tile];
  float inverse[row_tile];  ///< 0 where the weights are next to nothing, and would overflow it
  bool wide;

  Steps(const FoldedRows& folded, const Rounding& rounding) : wide(rounding.wide) {
    for (int r = 0; r < row_tile; ++r) {
      step[r] = folded.largest[r] * rounding.unit;
      inverse[r] = folded.largest[r] > 1e-30f ? rounding.levels / folded.largest[r] : 0.0f;
    }
    if (!rounding.refined) return;
    for (int r = 0; r < row_tile; ++r) {
      const float coarsest_square = rounding.square_share * folded.square[r];
      if (inverse[r] == 0.0f || coarsest_square >= step[r] * step[r]) continue;
      step[r] = std::sqrt(coarsest_square);
      inverse[r] = 1.0f / step[r];
      wide = wide || folded.largest[r] > 127.25f * step[r];  // rounds to 128
    }
  }
};

/// Makes the weights of one band for `Tile` rows, and their terms. Returns whether they are wide.
template <int Tile>
inline bool weigh(const Contraction& contraction, int row, Range inner, const F16* scales,
                  const Rounding& rounding, const WeightScratch& scratch, RowTerms* terms) {
  const bool scaled = scales != nullptr;
  FoldedRows folded;
  if (rounding.refined)
    fold<Tile, true>(contraction, row, inner, scales, rounding.mean_code, scratch.exact, folded);
  else
    fold<Tile, false>(contraction, row, inner, scales, rounding.mean_code, scratch.exact, folded);
  float totals[row_tile] = {};
  float offsets[row_tile] = {};
  if (!scaled) reduce_add(folded.linear, totals);
  if (!rounding.integers) {
    if (scaled) reduce_add(folded.linear, offsets);
    for (int r = 0; r < Tile; ++r) terms[r] = {1.0f, offsets[r], totals[r]};
    return false;
  }
  const Steps steps(folded, rounding);
  F32x16 sums[Tile];
  if (steps.wide)
    round_weights<Tile, true>(scratch, padded_units(inner), steps.inverse, sums);
  else
    round_weights<Tile, false>(scratch, padded_units(inner), steps.inverse, sums);
  // What rounding took from the weights comes back times the mean code.
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    const F32x16 linear =
        scaled ? folded.linear[r] : mul(folded.linear[r], broadcast(rounding.mean_code));
    folded.linear[r] =
        multiply_add(sums[r], broadcast(-rounding.mean_code * steps.step[r]), linear);
  }
  reduce_add(folded.linear, offsets);
  for (int r = 0; r < Tile; ++r) terms[r] = {steps.step[r], offsets[r], totals[r]};
  return steps.wide;
}

/// One band of one tile of rows.
inline void contract_band(const Contraction& contraction, int row, int rows, int band,
                          const Rounding& rounding, DotFn dot) {
  const TensorLayout& tensor = *contraction.tensor;
  const int group = tensor.format.group;
  const bool along_outer = tensor.group_along_outer;
  const F16* scales = tensor.scales(contraction.block, band);
  Range outer = contraction.outer;
  Contraction part = contraction;
  Range& grouped = along_outer ? outer : part.inner;
  grouped = {larger(grouped.first, band * group), smaller(grouped.last, (band + 1) * group)};
  const WeightScratch scratch(contraction);
  const F16* inner_scales = along_outer ? scales : nullptr;
  RowTerms terms[row_tile];
  const bool wide =
      rows == row_tile
          ? weigh<row_tile>(contraction, row, part.inner, inner_scales, rounding, scratch, terms)
          : weigh<1>(contraction, row, part.inner, inner_scales, rounding, scratch, terms);
  dot(part, blocks_of(outer), row, rows, {scratch.exact, scratch.integers, wide}, terms,
      along_outer ? nullptr : scales);
}

/// Rows that are taken together when `left` are left.
inline int next_rows(int left) { return left >= row_tile ? row_tile : 1; }

/// 16-bit tensors: the coefficients are the weights.
inline void contract_halves(const Contraction& contraction, DotFn dot) {
  const RowTerms plain[row_tile] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
  for (int row = 0, rows; row < contraction.rows; row += rows) {
    rows = next_rows(contraction.rows - row);
    dot(contraction, blocks_of(contraction.outer), row, rows, Weights{}, plain, nullptr);
  }
}

inline void contract(const Contraction& contraction, Sums sums, DotFn dot) {
  const TensorLayout& tensor = *contraction.tensor;
  if (!tensor.format.quantized()) return contract_halves(contraction, dot);
  const Rounding rounding(contraction, sums);
  const Range grouped = tensor.group_along_outer ? contraction.outer : contraction.inner;
  const int group = tensor.format.group;
  for (int row = 0, rows; row < contraction.rows; row += rows) {
    rows = next_rows(contraction.rows - row);
    for (int band = grouped.first / group; band * group < grouped.last; ++band)
      contract_band(contraction, row, rows, band, rounding, dot);
  }
}
