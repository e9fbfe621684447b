// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }

/// x in lanes first to last-1, 0 elsewhere.
inline F32x16 keep_lanes(const F32x16& x, int first, int last) {
  return keep(x, lanes_between(first, last), 0.0f);
}

/// Lanes of a block: 16, or 8 for the last block of an outer extent that is an odd multiple of 8.
inline int block_lanes(CodeMatrix matrix, int block) {
  return block < matrix.full_blocks() ? line_lanes : line_lanes / 2;
}

/// The planes of a packed tensor, resolved for one block.
template <int Bits>
struct BlockReader {
  static constexpr Planes split = planes(Bits);
  const std::byte* plane[max_planes];
  int first_index;  ///< of the block's quad 0 in a plane
  int lanes;

  BlockReader(const std::byte* codes, CodeMatrix matrix, int block)
      : first_index(0), lanes(block_lanes(matrix, block)) {
    const bool full = lanes == line_lanes;
    if (full) first_index = block * matrix.quads();
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      plane[p] = codes + (full ? 0 : full_plane_bytes(matrix, split.width[p]));
      codes += plane_bytes(matrix, split.width[p]);
    }
  }

  /// The codes of one quad: byte b of a lane is the code of inner index 4 * quad + b.
  I32x16 quad_codes(int quad_index) const {
    I32x16 codes = broadcast_bits(0);
    KVTILT_UNROLL(3)
    for (int p = 0; p < split.count; ++p) {
      const int width = split.width[p];
      const int fields = 8 / width;
      const int index = first_index + quad_index;
      I32x16 field = load_line(plane[p] + index / fields * lanes * quad, lanes);
      if (width < 8) {
        const std::uint32_t mask = ((1u << width) - 1u) * 0x01010101u;
        field = bit_and(shift_right(field, index % fields * width), broadcast_bits(mask));
      }
      codes = p == 0 ? field : bit_or(shift_left(codes, width), field);
    }
    return codes;
  }
};

/// The 16-bit case of contract_block. The number of lanes is a constant: clang would otherwise test
/// it for every value.
template <int Lanes, int Tile>
inline void contract_halves(const F16* values, Range inner, Rows<const float> coefficients,
                            F32x16* sum) {
  for (int i = inner.first; i < inner.last; ++i) {
    const F32x16 value = load_f16(values + static_cast<std::ptrdiff_t>(i) * Lanes, Lanes);
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r)
      sum[r] = multiply_add(value, broadcast(coefficients[r][i]), sum[r]);
  }
}

/// sums[r] += sum over i in `inner` of coefficients[r][i] * code(block lane, i).
template <int Bits, int Tile>
inline void contract_block(const TensorLayout& tensor, const std::byte* block, int index,
                           Range inner, Rows<const float> coefficients, F32x16* sums) {
  F32x16 sum[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) sum[r] = sums[r];
  if constexpr (Bits == half_bits) {
    const F16* values = reinterpret_cast<const F16*>(block + tensor.codes) +
                        static_cast<std::ptrdiff_t>(index) * line_lanes * tensor.matrix.inner;
    if (block_lanes(tensor.matrix, index) == line_lanes)
      contract_halves<line_lanes, Tile>(values, inner, coefficients, sum);
    else
      contract_halves<line_lanes / 2, Tile>(values, inner, coefficients, sum);
  } else {
    const BlockReader<Bits> reader(block + tensor.codes, tensor.matrix, index);
    const I32x16 low_byte = broadcast_bits(0xffu);
    for (int q = inner.first / quad; q * quad < inner.last; ++q) {
      const I32x16 codes = reader.quad_codes(q);
      KVTILT_UNROLL(4)
      for (int b = 0; b < quad; ++b) {
        const F32x16 code = to_floats(bit_and(shift_right(codes, 8 * b), low_byte));
        KVTILT_UNROLL(4)
        for (int r = 0; r < Tile; ++r)
          sum[r] = multiply_add(code, broadcast(coefficients[r][q * quad + b]), sum[r]);
      }
    }
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) sums[r] = sum[r];
}

template <int Tile>
inline void add_to_result(Rows<float> result, int index, const F32x16* sums) {
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    float* out = result[r] + index * line_lanes;
    store(out, add(load(out), sums[r]));
  }
}

/// Groups along outer share nothing along inner: scales fold into the coefficients and minima into
/// a constant, once per band.
template <int Bits, int Tile>
inline void contract_along_outer(const TensorLayout& tensor, const std::byte* block,
                                 Rows<const float> coefficients, Range outer, Range inner,
                                 Rows<float> result, float* scratch) {
  const int group = tensor.format.group;
  const int pitch = tensor.pitch();
  const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(
      round_up(static_cast<std::size_t>(tensor.matrix.inner), line_lanes));
  for (int band = outer.first / group; band * group < outer.last; ++band) {
    const F16* scales = tensor.scales(block, band);
    F32x16 constants[Tile];
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      F32x16 constant = broadcast(0.0f);
      for (int i = inner.first / line_lanes * line_lanes; i < inner.last; i += line_lanes) {
        const int lanes = smaller(line_lanes, pitch - i);
        const F32x16 coefficient = load(coefficients[r] + i);
        const F32x16 folded = mul(coefficient, load_f16(scales + i, lanes));
        const F32x16 shift = mul(coefficient, load_f16(scales + pitch + i, lanes));
        store(scratch + r * stride + i, keep_lanes(folded, inner.first - i, inner.last - i));
        constant = add(constant, keep_lanes(shift, inner.first - i, inner.last - i));
      }
      constants[r] = broadcast(reduce_add(constant));
    }
    const int first = larger(outer.first, band * group) / line_lanes;
    const int end = smaller(outer.last, (band + 1) * group);
    for (int index = first; index * line_lanes < end; ++index) {
      F32x16 sums[Tile];
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) sums[r] = constants[r];
      contract_block<Bits, Tile>(tensor, block, index, inner, {scratch, stride}, sums);
      add_to_result<Tile>(result, index, sums);
    }
  }
}

/// Groups along inner belong to a lane: the sum over a band is scaled afterwards.
template <int Bits, int Tile>
inline void contract_along_inner(const TensorLayout& tensor, const std::byte* block,
                                 Rows<const float> coefficients, Range outer, Range inner,
                                 Rows<float> result) {
  const int group = tensor.format.group;
  const int pitch = tensor.pitch();
  for (int band = inner.first / group; band * group < inner.last; ++band) {
    const F16* scales = tensor.scales(block, band);
    const Range part{larger(inner.first, band * group), smaller(inner.last, (band + 1) * group)};
    F32x16 totals[Tile];
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      F32x16 total = broadcast(0.0f);
      for (int i = part.first / line_lanes * line_lanes; i < part.last; i += line_lanes)
        total = add(total, keep_lanes(load(coefficients[r] + i), part.first - i, part.last - i));
      totals[r] = broadcast(reduce_add(total));
    }
    for (int index = outer.first / line_lanes; index * line_lanes < outer.last; ++index) {
      const int lanes = block_lanes(tensor.matrix, index);
      const F32x16 scale = load_f16(scales + index * line_lanes, lanes);
      const F32x16 minimum = load_f16(scales + pitch + index * line_lanes, lanes);
      F32x16 sums[Tile];
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) sums[r] = broadcast(0.0f);
      contract_block<Bits, Tile>(tensor, block, index, part, coefficients, sums);
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r)
        sums[r] = multiply_add(scale, sums[r], mul(minimum, totals[r]));
      add_to_result<Tile>(result, index, sums);
    }
  }
}

template <int Bits, int Tile>
inline void contract_tile(const TensorLayout& tensor, const std::byte* block,
                          Rows<const float> coefficients, Range outer, Range inner,
                          Rows<float> result, float* scratch) {
  if constexpr (Bits == half_bits) {
    for (int index = outer.first / line_lanes; index * line_lanes < outer.last; ++index) {
      F32x16 sums[Tile];
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) sums[r] = broadcast(0.0f);
      contract_block<Bits, Tile>(tensor, block, index, inner, coefficients, sums);
      add_to_result<Tile>(result, index, sums);
    }
  } else if (tensor.group_along_outer) {
    contract_along_outer<Bits, Tile>(tensor, block, coefficients, outer, inner, result, scratch);
  } else {
    contract_along_inner<Bits, Tile>(tensor, block, coefficients, outer, inner, result);
  }
}

template <int Bits>
void contract(const TensorLayout& tensor, const std::byte* block, Rows<const float> coefficients,
              int rows, Range outer, Range inner, Rows<float> result, float* scratch) {
  int row = 0;
  for (; row + 4 <= rows; row += 4)
    contract_tile<Bits, 4>(tensor, block, {coefficients[row], coefficients.stride}, outer, inner,
                           {result[row], result.stride}, scratch);
  for (; row < rows; ++row)
    contract_tile<Bits, 1>(tensor, block, {coefficients[row], coefficients.stride}, outer, inner,
                           {result[row], result.stride}, scratch);
}
