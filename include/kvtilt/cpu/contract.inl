// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Runs a contraction band by band: turns coefficients, scales and minima into weights and terms, then
// calls the dot product of the code width. Does not depend on the width itself; dot.inl does.

/// The extent of the weights that a dot product may read: whole units of 32 around `inner`.
inline Range padded_units(Range inner) {
  return {inner.first / 32 * 32, (inner.last + 31) / 32 * 32};
}

inline Range blocks_of(Range outer) {
  return {outer.first / line_lanes, (outer.last + line_lanes - 1) / line_lanes};
}

/// The part of a band that lies in one page, with its scales if they lie along inner.
struct BandPage {
  Range inner;        ///< of the page
  const F16* scales;  ///< minima follow, `pitch` on; null if scales lie along outer
  int pitch;
  std::ptrdiff_t prefetch_offset;

  /// Loads the scales of a line, and middle = minimum + mean code * scale. Both are 1 if scales lie
  /// along outer, and 0 outside `inner`, where stored bytes and coefficients then do not matter.
  KVTILT_INLINE void load_line(int i, const F32x16& mean, F32x16& scale, F32x16& middle) const {
    if (scales == nullptr || i < inner.first || i + line_lanes > inner.last)
      return load_edge(i, mean, scale, middle);
    prefetch(scales + i, prefetch_offset);
    prefetch(scales + pitch + i, prefetch_offset);
    scale = load_f16(scales + i, line_lanes);
    middle = multiply_add(scale, mean, load_f16(scales + pitch + i, line_lanes));
  }

  void load_edge(int i, const F32x16& mean, F32x16& scale, F32x16& middle) const {
    const LaneMask inside = lanes_between(inner.first - i, inner.last - i);
    scale = middle = keep(broadcast(1.0f), inside, 0.0f);
    if (scales == nullptr || inside == 0) return;
    const int lanes = smaller(line_lanes, pitch - i);
    scale = keep(load_f16(scales + i, lanes), inside, 0.0f);
    middle = keep(load_f16(scales + pitch + i, lanes), inside, 0.0f);
    middle = multiply_add(scale, mean, middle);
  }
};

/// A band and a tile of rows, before their weights are made.
struct Band {
  const Contraction* contraction;
  int row;
  int band;     ///< number in its page
  Range inner;  ///< over all pages

  /// The page whose inner indices begin at `start`.
  [[nodiscard]] KVTILT_INLINE BandPage page(int index, int start) const {
    const TensorLayout& tensor = *contraction->tensor;
    const PageBlock& block = contraction->pages[index];
    return {{inner.first - start, inner.last - start},
            tensor.scales_along_inner() ? tensor.scales(block.data, band) : nullptr,
            tensor.pitch(),
            block.prefetch_offset};
  }
};

/// Number of inner indices that the scratch memory has room for.
inline int scratch_extent(const Contraction& contraction) {
  const int inner = contraction.page_inner();
  return contraction.role == Role::Values ? larger(inner, joined_slots) : inner;
}

/// The scratch memory of a contraction, divided: where the weights of a band are made.
struct WeightScratch {
  float* floats;
  std::int8_t* integers;

  explicit WeightScratch(const Contraction& contraction)
      : floats(reinterpret_cast<float*>(contraction.scratch)),
        integers(
            reinterpret_cast<std::int8_t*>(floats + padded_weights(scratch_extent(contraction)))) {}
};

/// Results of fold() over the weights of a band.
struct FoldedRows {
  F32x16 linear[row_tile];  ///< sums of coefficient * middle, see BandPage::load_line
  Floats4 largest;          ///< magnitude of a weight
};

/// Multiplies coefficients by the scales of a band: makes its float weights.
template <int Tile>
KVTILT_INLINE void fold(const Band& band, float mean_code, float* floats, FoldedRows& folded) {
  // Local copies, as the compiler assumes that a vector store may change anything behind a reference.
  const Rows<const float> rows{band.contraction->coefficients[band.row],
                               band.contraction->coefficients.stride};
  const int page_inner = band.contraction->page_inner();
  const Range units = padded_units(band.inner);
  const F32x16 mean = broadcast(mean_code);
  F32x16 linear[row_tile];
  F32x16 largest[row_tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) linear[r] = largest[r] = broadcast(0.0f);
  int i = units.first;
  for (int index = 0, start = 0; i < units.last; ++index, start += page_inner) {
    const BandPage page = band.page(index, start);
    for (const int end = smaller(units.last, start + page_inner); i < end; i += line_lanes) {
      float* out = floats + std::ptrdiff_t{i} * row_tile;
      F32x16 scale;
      F32x16 middle;
      page.load_line(i - start, mean, scale, middle);
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) {
        const F32x16 coefficient = load(rows[r] + i);
        const F32x16 weight = mul(coefficient, scale);
        linear[r] = multiply_add(coefficient, middle, linear[r]);
        largest[r] = max_magnitude(largest[r], weight);
        store(out + r * line_lanes, weight);
      }
    }
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) folded.linear[r] = linear[r];
  folded.largest = reduce_max(largest);
}

/// Sums, lane by lane, over the integer weights of a tile's rows.
struct RoundedRows {
  I32x16 sum[row_tile];
  I32x16 square[row_tile];  ///< of single bytes only
};

/// A weight in steps, rounded to an integer: down after adding an offset below 1, if there are offsets.
template <bool Offsets>
KVTILT_INLINE I32x16 to_integers(const F32x16& weight, const F32x16& inverse_step,
                                 const F32x16& offset) {
  return Offsets ? truncate(multiply_add(weight, inverse_step, offset))
                 : round_product(weight, inverse_step);
}

/// Rounds weights to integers of one byte or, if wide, two. `Offsets`: those of values.
template <int Tile, bool Wide, bool Offsets>
KVTILT_INLINE void round_weights(const Contraction& contraction, const WeightScratch& scratch,
                                 Range units, Floats4 inverse_steps, RoundedRows& result) {
  const I32x16 ones = broadcast_bits(0x10001u);
  F32x16 inverse[Tile];
  I32x16 sum[row_tile];
  I32x16 square[row_tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    if (r < Tile) inverse[r] = broadcast(inverse_steps[r]);
    sum[r] = square[r] = broadcast_bits(0);
  }
  const int page_inner = contraction.page_inner();
  const PageBlock* page = contraction.pages;
  int i = units.first;
  for (int start = 0; i < units.last; start += page_inner, ++page) {
    for (const int end = smaller(units.last, start + page_inner); i < end; i += 2 * line_lanes) {
      const float* floats = scratch.floats + std::ptrdiff_t{i} * row_tile;
      std::int8_t* out = scratch.integers + std::ptrdiff_t{i} * row_tile * (Wide ? 2 : 1);
      const float* offsets = slot_offsets.of(page->position + i - start);
      const F32x16 low = load(offsets);
      const F32x16 high = load(offsets + line_lanes);
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) {
        const float* line = floats + r * line_lanes;
        const I32x16 words =
            pack_words(to_integers<Offsets>(load(line), inverse[r], low),
                       to_integers<Offsets>(load(line + row_tile * line_lanes), inverse[r], high));
        sum[r] = dot_pairs(sum[r], words, ones);
        if (Wide) {
          store_words(reinterpret_cast<std::int16_t*>(out) + r * 2 * line_lanes, words);
        } else {
          square[r] = dot_pairs(square[r], words, words);
          store_low_bytes(out + r * 2 * line_lanes, words);
        }
      }
    }
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    result.sum[r] = sum[r];
    result.square[r] = square[r];
  }
}

template <int Tile, bool Wide>
KVTILT_INLINE void round_weights(const Contraction& contraction, const WeightScratch& scratch,
                                 Range units, Floats4 inverse_steps, RoundedRows& result) {
  if (contraction.role == Role::Values)
    round_weights<Tile, Wide, true>(contraction, scratch, units, inverse_steps, result);
  else
    round_weights<Tile, Wide, false>(contraction, scratch, units, inverse_steps, result);
}

/// Steps of a tile's integer weights.
struct Steps {
  Floats4 step;
  Floats4 inverse;  ///< 0 if the weights are so small that it would overflow

  Steps(Floats4 largest, Floats4 levels) {
    const Floats4 nothing = {};
    const Floats4 one = nothing + 1.0f;
    const auto counts = largest > 1e-30f;
    step = largest / levels;
    // Keeps the largest weight within its level in any rounding mode: 2^-20 exceeds the rounding
    // errors of both products.
    inverse = counts ? levels * (1.0f - 0x1p-20f) / (counts ? largest : one) : nothing;
  }
};

/// Whether single bytes are too coarse for a row, judged by the squares of its rounded weights.
KVTILT_INLINE auto too_coarse(const RoundedRows& rounded, const Rounding& rounding) {
  F32x16 squares[row_tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) squares[r] = to_floats(rounded.square[r]);
  return reduce_add(squares) < rounding.least_square;
}

/// Makes the weights of one band for `Tile` rows, and their terms. Returns whether they are wide.
template <int Tile>
inline bool weigh(const Band& band, const Rounding& rounding, const WeightScratch& scratch,
                  RowTerms& terms) {
  const Contraction& contraction = *band.contraction;
  const bool scales_along_inner = contraction.tensor->scales_along_inner();
  FoldedRows folded;
  fold<Tile>(band, rounding.mean_code, scratch.floats, folded);
  if (!scales_along_inner || !rounding.integers)
    (scales_along_inner ? terms.offset : terms.total) = reduce_add(folded.linear);
  if (!rounding.integers) {
    terms.step = Floats4{} + 1.0f;
    return false;
  }
  const Range units = padded_units(band.inner);
  const Floats4 levels = Floats4{} + rounding.levels;
  Steps steps(folded.largest, levels);
  RoundedRows rounded;
  bool wide = rounding.wide;
  if (!wide) {
    round_weights<Tile, false>(contraction, scratch, units, steps.inverse, rounded);
    if (rounding.checked) {
      const auto coarse = too_coarse(rounded, rounding) & (steps.inverse > 0.0f);
      if ((coarse[0] | coarse[1] | coarse[2] | coarse[3]) != 0) {
        wide = true;
        steps =
            Steps(folded.largest, coarse ? Floats4{} + widest_weight(contraction.role) : levels);
      }
    }
  }
  if (wide) round_weights<Tile, true>(contraction, scratch, units, steps.inverse, rounded);
  // Compensates the rounding of the weights as if each code were the mean code.
  const float mean = rounding.mean_code;
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r)
    folded.linear[r] = multiply_add(
        to_floats(rounded.sum[r]), broadcast(-mean * steps.step[r]),
        scales_along_inner ? folded.linear[r] : mul(folded.linear[r], broadcast(mean)));
  terms.offset = reduce_add(folded.linear);
  terms.step = steps.step;
  return wide;
}

/// Rows of the next tile if `left` are left.
inline int next_rows(int left) { return left >= row_tile ? row_tile : 1; }

/// The range of a contraction along the axis of the groups.
inline Range grouped_range(const Contraction& contraction) {
  return contraction.tensor->group_along_outer ? contraction.outer : contraction.inner;
}

inline bool bands_are_left(const PendingContraction& work) {
  return work.row < work.contraction.rows;
}

/// Makes the weights of the next band of a contraction. If groups lie along inner, all bands of a tile
/// contribute to the same results; for keys, the first one overwrites them and the others add.
inline void weigh_next(PendingContraction& work) {
  const Contraction& contraction = work.contraction;
  const TensorLayout& tensor = *contraction.tensor;
  const int group = tensor.format.group;
  const bool along_outer = tensor.group_along_outer;
  Range outer = contraction.outer;
  Range inner = contraction.inner;
  Range& grouped = along_outer ? outer : inner;
  const int first_band = grouped.first / group;
  const int end = grouped.last;
  grouped = {larger(grouped.first, work.band * group), smaller(end, (work.band + 1) * group)};
  // If groups lie along inner, bands are numbered over all pages, and each lies in one page.
  int index = 0;
  if (!along_outer)
    while ((index + 1) * contraction.page_inner() <= inner.first) ++index;
  const PageBlock& page = contraction.pages[index];
  const Band band{.contraction = &contraction,
                  .row = work.row,
                  .band = work.band - index * tensor.bands(),
                  .inner = inner};

  const WeightScratch scratch(contraction);
  WeighedBand& result = work.weighed;
  result.blocks = blocks_of(outer);
  result.row = work.row;
  result.rows = next_rows(contraction.rows - work.row);
  result.adds = contraction.role == Role::Values || (!along_outer && work.band > first_band);
  result.outer_scales = tensor.scales_along_inner() ? nullptr : tensor.scales(page.data, band.band);
  result.prefetch_offset = page.prefetch_offset;
  result.terms = RowTerms{};
  const bool wide = result.rows == row_tile
                        ? weigh<row_tile>(band, work.rounding, scratch, result.terms)
                        : weigh<1>(band, work.rounding, scratch, result.terms);
  result.weights = {inner, scratch.floats, scratch.integers, wide};

  if (++work.band * group < end) return;
  work.band = first_band;
  work.row += result.rows;
}

/// Contracts a 16-bit tensor, which has a single page; the coefficients are the weights.
inline void contract_halves(PendingContraction& work) {
  const Contraction& contraction = work.contraction;
  WeighedBand& band = work.weighed;
  band = WeighedBand{};
  band.blocks = blocks_of(contraction.outer);
  band.adds = contraction.role == Role::Values;
  band.weights.inner = contraction.inner;
  for (; band.row < contraction.rows; band.row += band.rows) {
    const int left = contraction.rows - band.row;
    band.rows = left >= half_row_tile ? half_row_tile : next_rows(left);
    work.dot(contraction, band);
  }
}

inline void begin_contraction(PendingContraction& work) {
  const TensorLayout& tensor = *work.contraction.tensor;
  if (!tensor.format.quantized()) return;
  const Range grouped = grouped_range(work.contraction);
  work.band = grouped.first / tensor.format.group;
  work.row = grouped.first < grouped.last ? 0 : work.contraction.rows;
  if (bands_are_left(work)) weigh_next(work);
}

inline void finish_contraction(PendingContraction& work) {
  const Contraction& contraction = work.contraction;
  if (!contraction.tensor->format.quantized()) return contract_halves(work);
  const Range grouped = grouped_range(contraction);
  if (grouped.first >= grouped.last) return;
  for (;;) {
    work.dot(contraction, work.weighed);
    if (!bands_are_left(work)) return;
    weigh_next(work);
  }
}
