// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Dot products of weights and 16-bit values, in the manner of dot.inl.

/// Dot product of 16-bit blocks of `Lanes` lanes. Reads only indices in `inner`, because other slots may
/// hold NaN. Sums run in the order of `inner` for any number of rows and blocks.
template <int Tile, int Blocks, int Lanes>
KVTILT_INLINE void dot_halves(const Contraction& contraction, const WeighedBand& band, int block) {
  const TensorLayout& tensor = *contraction.tensor;
  const std::ptrdiff_t block_values = std::ptrdiff_t{line_lanes} * tensor.matrix.inner;
  const F16* values =
      reinterpret_cast<const F16*>(contraction.pages->data + tensor.codes) + block * block_values;
  const Rows<const float>& weights = contraction.coefficients;
  F32x16 sum[Blocks][Tile];
  KVTILT_UNROLL(2)
  for (int b = 0; b < Blocks; ++b) {
    KVTILT_UNROLL(8)
    for (int r = 0; r < Tile; ++r) sum[b][r] = broadcast(0.0f);
  }
  for (int i = contraction.inner.first; i < contraction.inner.last; ++i) {
    F32x16 value[Blocks];
    KVTILT_UNROLL(2)
    for (int b = 0; b < Blocks; ++b) {
      const F16* line = values + b * block_values + std::ptrdiff_t{i} * Lanes;
      prefetch(line, contraction.pages->prefetch_offset);
      value[b] = load_f16(line, Lanes);
    }
    KVTILT_UNROLL(8)
    for (int r = 0; r < Tile; ++r) {
      const F32x16 weight = broadcast(weights[band.row + r][i]);
      KVTILT_UNROLL(2)
      for (int b = 0; b < Blocks; ++b) sum[b][r] = multiply_add(value[b], weight, sum[b][r]);
    }
  }
  KVTILT_UNROLL(2)
  for (int b = 0; b < Blocks; ++b) {
    KVTILT_UNROLL(8)
    for (int r = 0; r < Tile; ++r) {
      float* out = contraction.result[band.row + r] + (block + b) * line_lanes;
      store(out, band.adds ? add(load(out), sum[b][r]) : sum[b][r]);
    }
  }
}

template <int Tile>
KVTILT_INLINE void dot_half_rows(const Contraction& contraction, const WeighedBand& band) {
  const int full = smaller(band.blocks.last, contraction.tensor->matrix.full_blocks());
  int block = band.blocks.first;
  for (; block + block_tile <= full; block += block_tile)
    dot_halves<Tile, block_tile, line_lanes>(contraction, band, block);
  if (block < full) dot_halves<Tile, 1, line_lanes>(contraction, band, block++);
  if (block < band.blocks.last) dot_halves<Tile, 1, line_lanes / 2>(contraction, band, block);
}

inline void dot_all_halves(const Contraction& contraction, const WeighedBand& band) {
  if (band.rows == half_row_tile)
    dot_half_rows<half_row_tile>(contraction, band);
  else if (band.rows == row_tile)
    dot_half_rows<row_tile>(contraction, band);
  else
    dot_half_rows<1>(contraction, band);
}
