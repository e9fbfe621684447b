// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Dot products of weights and codes: the inner loops of attention. A lane is one token (keys) or one
// channel (values), so no sum crosses lanes. Codes are decoded once for `Tile` rows, weights are
// loaded once for `Blocks` blocks of 16 lanes.

/// No limit: more quads than any page has.
inline constexpr int any_quads = 1 << 20;

/// Float sums of `Tile` rows over one block.
template <int Tile>
struct FloatDot {
  F32x16 sum[Tile];

  KVTILT_INLINE FloatDot() {
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) sum[r] = broadcast(0.0f);
  }

  KVTILT_INLINE void add(const I32x16& codes, const Weights& weights, std::size_t quad) {
    constexpr std::size_t quads_per_line = line_lanes / quad_codes;
    const float* floats = weights.floats + quad / quads_per_line * (row_tile * line_lanes) +
                          quad % quads_per_line * quad_codes;
    const I32x16 low_byte = broadcast_bits(0xffu);
    KVTILT_UNROLL(4)
    for (int byte = 0; byte < quad_codes; ++byte) {
      const F32x16 code = to_floats(byte == 3 ? shift_right(codes, 24)
                                              : bit_and(shift_right(codes, 8 * byte), low_byte));
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r)
        sum[r] = multiply_add(code, broadcast(floats[r * line_lanes + byte]), sum[r]);
    }
  }
};

/// Offset of the first row's weights for a quad: `member` of the unit that begins with quad `first`.
/// Rows alternate after 32 weights each.
KVTILT_INLINE std::size_t weight_offset(std::size_t first, int member) {
  constexpr std::size_t quads = 2 * line_lanes / quad_codes;
  return first / quads * (row_tile * quads * quad_codes) + first % quads * quad_codes +
         static_cast<std::size_t>(member) * quad_codes;
}

template <class T>
KVTILT_INLINE I32x16 broadcast_word(const T* weights) {
  std::uint32_t word;
  std::memcpy(&word, weights, sizeof word);
  return broadcast_bits(word);
}

/// Integer sums of `Tile` rows over `Blocks` blocks.
template <int Tile, int Blocks>
struct IntegerSums {
  I32x16 sum[Blocks][Tile];

  KVTILT_INLINE IntegerSums() { clear(); }

  KVTILT_INLINE void clear() {
    KVTILT_UNROLL(2)
    for (int b = 0; b < Blocks; ++b) {
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) sum[b][r] = broadcast_bits(0);
    }
  }

  KVTILT_INLINE void add_sums(const IntegerSums& other) {
    KVTILT_UNROLL(2)
    for (int b = 0; b < Blocks; ++b) {
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) sum[b][r] = add_ints(sum[b][r], other.sum[b][r]);
    }
  }

  KVTILT_INLINE F32x16 total(int b, int r) const { return to_floats(sum[b][r]); }
};

/// Integer sums over weights of one byte. If the instruction set sums pairs of products in 16 bits
/// (adds_pairs), flush() must be called after at most pair_quads(bits, Unsigned) quads.
template <int Tile, int Blocks, bool Unsigned>
struct ByteDot : IntegerSums<Tile, Blocks> {
  using IntegerSums<Tile, Blocks>::sum;
  static constexpr int quads_to_flush(int bits) {
    return adds_pairs ? pair_quads(bits, Unsigned) : any_quads;
  }
  IntegerSums<Tile, Blocks> pairs;

  KVTILT_INLINE ByteDot() {}  // g++ compiles an implicit one without the region's target

  KVTILT_INLINE void add(const I32x16 (&codes)[Blocks], const Weights& weights, std::size_t first,
                         int member = 0) {
    const std::int8_t* bytes = weights.integers + weight_offset(first, member);
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) {
      const I32x16 weight = broadcast_word(bytes + r * 2 * line_lanes);
      KVTILT_UNROLL(2)
      for (int b = 0; b < Blocks; ++b) {
        I32x16& to = adds_pairs ? pairs.sum[b][r] : sum[b][r];
        to = Unsigned ? dot_add_unsigned(to, codes[b], weight) : dot_add(to, codes[b], weight);
      }
    }
  }

  KVTILT_INLINE void flush() {
    if constexpr (adds_pairs) {
      KVTILT_UNROLL(2)
      for (int b = 0; b < Blocks; ++b) {
        KVTILT_UNROLL(4)
        for (int r = 0; r < Tile; ++r) sum[b][r] = add_pairs(sum[b][r], pairs.sum[b][r]);
      }
      pairs.clear();
    }
  }
};

template <int Tile, int Blocks>
using SignedDot = ByteDot<Tile, Blocks, false>;
template <int Tile, int Blocks>
using UnsignedDot = ByteDot<Tile, Blocks, true>;

/// Integer sums over weights of two bytes.
template <int Tile, int Blocks>
struct WideDot : IntegerSums<Tile, Blocks> {
  using IntegerSums<Tile, Blocks>::sum;
  static constexpr int quads_to_flush(int) { return any_quads; }

  KVTILT_INLINE WideDot() {}

  KVTILT_INLINE void add(const I32x16 (&codes)[Blocks], const Weights& weights, std::size_t first,
                         int member = 0) {
    const std::int16_t* words = weights.words() + weight_offset(first, member);
    KVTILT_UNROLL(2)
    for (int part = 0; part < 2; ++part) {
      I32x16 pair[Blocks];
      KVTILT_UNROLL(2)
      for (int b = 0; b < Blocks; ++b)
        pair[b] = part == 0 ? widen_low_bytes(codes[b]) : widen_high_bytes(codes[b]);
      KVTILT_UNROLL(4)
      for (int r = 0; r < Tile; ++r) {
        const I32x16 weight = broadcast_word(words + r * 2 * line_lanes + 2 * part);
        KVTILT_UNROLL(2)
        for (int b = 0; b < Blocks; ++b) sum[b][r] = dot_pairs(sum[b][r], pair[b], weight);
      }
    }
  }

  KVTILT_INLINE void flush() {}
};

/// Applies the terms to the sums of a block; stores or adds them to the results.
template <int Tile>
KVTILT_INLINE void give_results(const Contraction& contraction, const WeighedBand& band, int block,
                                const F32x16 (&sums)[Tile]) {
  const int at = block * line_lanes;
  F32x16 value[Tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r)
    value[r] =
        multiply_add(sums[r], broadcast(band.terms.step[r]), broadcast(band.terms.offset[r]));
  if (band.outer_scales != nullptr) {
    const int lanes = block_lanes(contraction.tensor->matrix, block);
    const F16* minima = band.outer_scales + contraction.tensor->pitch();
    prefetch(band.outer_scales + at, band.prefetch_offset);
    prefetch(minima + at, band.prefetch_offset);
    const F32x16 scale = load_f16(band.outer_scales + at, lanes);
    const F32x16 minimum = load_f16(minima + at, lanes);
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r)
      value[r] = multiply_add(value[r], scale, mul(minimum, broadcast(band.terms.total[r])));
  }
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    float* out = contraction.result[band.row + r] + at;
    if (band.adds) value[r] = add(load(out), value[r]);
    store(out, value[r]);
  }
}

/// The part of `inner` that lies in the page whose first index is `start`.
inline Range part_of(Range inner, int start, int page_inner) {
  return {larger(inner.first - start, 0), smaller(inner.last - start, page_inner)};
}

template <int Tile, int Blocks, class Dot>
KVTILT_INLINE void give_totals(const Contraction& contraction, const WeighedBand& band, int block,
                               const Dot& dot) {
  F32x16 sums[Blocks][Tile];
  KVTILT_UNROLL(2)
  for (int b = 0; b < Blocks; ++b) {
    KVTILT_UNROLL(4)
    for (int r = 0; r < Tile; ++r) sums[b][r] = dot.total(b, r);
  }
  KVTILT_UNROLL(2)
  for (int b = 0; b < Blocks; ++b) give_results(contraction, band, block + b, sums[b]);
}

/// Float dot product of one block of any kind and width, quad by quad.
template <int Tile>
inline void dot_quads(const Contraction& contraction, const WeighedBand& band, int block) {
  const TensorLayout& tensor = *contraction.tensor;
  const Range all = band.weights.inner;
  const int page_inner = contraction.page_inner();
  const PageBlock* page = contraction.pages;
  FloatDot<Tile> dot;
  for (int start = 0; start < all.last; start += page_inner, ++page) {
    const QuadReader reader(page->data + tensor.codes, tensor.matrix, tensor.format.bits, block);
    const Range inner = part_of(all, start, page_inner);
    for (int q = inner.first / quad_codes; q * quad_codes < inner.last; ++q) {
      const I32x16 codes = reader.codes(q, page->prefetch_offset);
      dot.add(codes, band.weights, static_cast<std::size_t>(start / quad_codes + q));
    }
  }
  give_results(contraction, band, block, dot.sum);
}

/// Integer dot product of one block of any kind, whose codes are decoded to memory first. As the width
/// matters to `decode` alone, this is compiled once for all.
template <template <int, int> class Dot, int Tile>
inline void dot_decoded(const Contraction& contraction, const WeighedBand& band, int block,
                        DecodeFn decode) {
  constexpr int step = 4;  // quads; few enough for the sums of pairs
  static_assert(Dot<Tile, 1>::quads_to_flush(widest_for_bytes) >= step);
  const TensorLayout& tensor = *contraction.tensor;
  const Range all = band.weights.inner;
  const int page_inner = contraction.page_inner();
  const PageBlock* page = contraction.pages;
  Dot<Tile, 1> dots[block_tile];  // take turns, as each sum waits for the one before it
  for (int start = 0; start < all.last; start += page_inner, ++page) {
    const Range inner = part_of(all, start, page_inner);
    const int last = (inner.last + step * quad_codes - 1) / (step * quad_codes) * step;
    for (int q = inner.first / (step * quad_codes) * step; q < last;) {
      I32x16 lines[decoded_lines];
      const int end = smaller(q + decoded_quads, last);
      const I32x16* line = decode(page->data + tensor.codes, tensor.matrix, block, {q, end},
                                  page->prefetch_offset, lines);
      for (; q < end; q += step, line += step) {
        KVTILT_UNROLL(4)
        for (int member = 0; member < step; ++member) {
          const I32x16 codes[1] = {line[member]};
          dots[member % block_tile].add(codes, band.weights,
                                        static_cast<std::size_t>(start / quad_codes + q), member);
        }
        KVTILT_UNROLL(2)
        for (int i = 0; i < block_tile; ++i) dots[i].flush();
      }
    }
  }
  KVTILT_UNROLL(2)
  for (int i = 1; i < block_tile; ++i) dots[0].add_sums(dots[i]);
  give_totals<Tile, 1>(contraction, band, block, dots[0]);
}

/// Dot product of block_tile full blocks, by whole units: their weights outside `inner` are 0.
template <template <int, int> class Dot, int Bits, int Tile>
KVTILT_INLINE void dot_units(const Contraction& contraction, const WeighedBand& band, int block) {
  constexpr int unit_size = unit_quads(Bits);
  constexpr int unit_inner = unit_size * quad_codes;
  constexpr std::ptrdiff_t units_to_flush = Dot<Tile, block_tile>::quads_to_flush(Bits) / unit_size;
  static_assert(units_to_flush > 0);
  const TensorLayout& tensor = *contraction.tensor;
  const Range all = band.weights.inner;
  const int page_inner = contraction.page_inner();
  const PageBlock* page = contraction.pages;
  Dot<Tile, block_tile> dot;
  for (int start = 0; start < all.last; start += page_inner, ++page) {
    BlockReader<Bits> readers[block_tile];
    KVTILT_UNROLL(2)
    for (int b = 0; b < block_tile; ++b)
      readers[b] = BlockReader<Bits>(page->data + tensor.codes, tensor.matrix, block + b);
    const Range inner = part_of(all, start, page_inner);
    const std::ptrdiff_t prefetch_offset = page->prefetch_offset;
    const std::ptrdiff_t units = (inner.last + unit_inner - 1) / unit_inner;
    for (std::ptrdiff_t unit = inner.first / unit_inner; unit < units;) {
      const std::ptrdiff_t end = units - unit < units_to_flush ? units : unit + units_to_flush;
      for (; unit < end; ++unit) {
        KVTILT_UNROLL(8)
        for (int member = 0; member < unit_size; ++member) {
          I32x16 codes[block_tile];
          KVTILT_UNROLL(2)
          for (int b = 0; b < block_tile; ++b)
            codes[b] = readers[b].codes(unit, member, prefetch_offset);
          dot.add(codes, band.weights,
                  static_cast<std::size_t>(start / quad_codes + unit * unit_size), member);
        }
      }
      dot.flush();
    }
  }
  give_totals<Tile, block_tile>(contraction, band, block, dot);
}

/// Integer dot products of the blocks from `block` on. Every width calls it, so g++ would inline it.
template <template <int, int> class Dot>
__attribute__((noinline)) inline void dot_blocks(const Contraction& contraction,
                                                 const WeighedBand& band, int block,
                                                 DecodeFn decode) {
  for (; block < band.blocks.last; ++block) {
    if (band.rows == row_tile)
      dot_decoded<Dot, row_tile>(contraction, band, block, decode);
    else
      dot_decoded<Dot, 1>(contraction, band, block, decode);
  }
}

/// Dot products of as many blocks as dot_units() can take. Returns the first block that is left.
template <template <int, int> class Dot, int Bits, int Tile>
KVTILT_INLINE int dot_unit_blocks(const Contraction& contraction, const WeighedBand& band) {
  const CodeMatrix matrix = contraction.tensor->matrix;
  int block = band.blocks.first;
  const int full = smaller(band.blocks.last, matrix.full_blocks());
  if (matrix.quads() % unit_quads(Bits) == 0)
    for (; block + block_tile <= full; block += block_tile)
      dot_units<Dot, Bits, Tile>(contraction, band, block);
  return block;
}

template <template <int, int> class Dot, int Bits>
KVTILT_INLINE void dot(const Contraction& contraction, const WeighedBand& band) {
  const int block = band.rows == row_tile ? dot_unit_blocks<Dot, Bits, row_tile>(contraction, band)
                                          : dot_unit_blocks<Dot, Bits, 1>(contraction, band);
  if (block < band.blocks.last) dot_blocks<Dot>(contraction, band, block, &decode<Bits>);
}

template <int Bits>
void dot_integers(const Contraction& contraction, const WeighedBand& band) {
  if constexpr (Bits > always_for_bytes)
    if (band.weights.wide) return dot<WideDot, Bits>(contraction, band);
  if constexpr (Bits <= widest_for_bytes) {
    if (contraction.role == Role::Values)
      dot<UnsignedDot, Bits>(contraction, band);
    else
      dot<SignedDot, Bits>(contraction, band);
  }
}

inline void dot_floats(const Contraction& contraction, const WeighedBand& band) {
  for (int block = band.blocks.first; block < band.blocks.last; ++block) {
    if (band.rows == row_tile)
      dot_quads<row_tile>(contraction, band, block);
    else
      dot_quads<1>(contraction, band, block);
  }
}

/// Enters a width's integer dot product into a table, if the list has that width.
template <class FormatList, int Bits>
constexpr void add_integer_dot(Kernels& table) {
  if constexpr (Bits <= widest_integer_dot &&
                (FormatList::keys::contains(Bits) || FormatList::values::contains(Bits)))
    table.integer_dot[width_slot(Bits)] = &dot_integers<Bits>;
}

/// Returns the table of another instruction set with the integer dot products of this one.
template <class FormatList, int... Bits>
constexpr Kernels with_integer_dots(Kernels table, Isa isa, std::integer_sequence<int, Bits...>) {
  table.isa = isa;
  (add_integer_dot<FormatList, Bits>(table), ...);
  return table;
}
