// SPDX-License-Identifier: MIT
// The primitives of scalar.inl on integers, and between them and floats.

/// Lanes that are not 0.
inline LaneMask nonzero(const I32x16& x) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (x.lane[i] != 0 ? 1u : 0u) << i;
  return static_cast<LaneMask>(mask);
}

/// Loads a line of 64 bytes; if `lanes` is 8, one of 32 bytes, and the other lanes are 0.
inline I32x16 load_line(const std::byte* p, int lanes) {
  I32x16 r{};
  std::memcpy(r.lane, p, static_cast<std::size_t>(lanes) * 4);
  return r;
}

inline void store_line(std::byte* p, const I32x16& x, int lanes) {
  std::memcpy(p, x.lane, static_cast<std::size_t>(lanes) * 4);
}

inline I32x16 broadcast_bits(std::uint32_t x) {
  I32x16 r;
  for (std::uint32_t& lane : r.lane) lane = x;
  return r;
}

inline I32x16 shift_left(const I32x16& x, int bits) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = x.lane[i] << bits;
  return r;
}

inline I32x16 shift_right(const I32x16& x, int bits) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = x.lane[i] >> bits;
  return r;
}

inline I32x16 bit_and(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] & b.lane[i];
  return r;
}

inline I32x16 bit_or(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] | b.lane[i];
  return r;
}

inline I32x16 add_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}

inline I32x16 sub_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}

/// The low 32 bits of the products.
inline I32x16 mul_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] * b.lane[i];
  return r;
}

inline I32x16 shift_right_signed(const I32x16& x, int bits) {
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = static_cast<std::uint32_t>(static_cast<std::int32_t>(x.lane[i]) >> bits);
  return r;
}

/// sum + the dot product of the four unsigned bytes of `codes` and the four signed bytes of
/// `weights`, lane by lane.
inline I32x16 dot_add(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) {
    std::int32_t dot = 0;
    for (int byte = 0; byte < 32; byte += 8)
      dot += static_cast<std::int32_t>(codes.lane[i] >> byte & 0xffu) *
             static_cast<std::int8_t>(weights.lane[i] >> byte);
    r.lane[i] = sum.lane[i] + static_cast<std::uint32_t>(dot);
  }
  return r;
}

/// The same for codes of up to 7 bits and unsigned weights.
inline I32x16 dot_add_unsigned(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  return dot_add(sum, weights, codes);
}

/// The low 16 bits of 32 lanes as words, in an order that differs between instruction sets; the two
/// stores below undo it.
inline I32x16 pack_words(const I32x16& first, const I32x16& second) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = (first.lane[i] & 0xffffu) | second.lane[i] << 16;
  return r;
}

/// Stores the words of pack_words() in the order of its 32 lanes.
inline void store_words(std::int16_t* p, const I32x16& words) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int16_t>(words.lane[i] & 0xffffu);
  for (int i = 0; i < 16; ++i) p[16 + i] = static_cast<std::int16_t>(words.lane[i] >> 16);
}

/// Stores the low bytes of these words in the same order.
inline void store_low_bytes(std::int8_t* p, const I32x16& words) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(words.lane[i] & 0xffu);
  for (int i = 0; i < 16; ++i) p[16 + i] = static_cast<std::int8_t>(words.lane[i] >> 16 & 0xffu);
}

/// Whether dot_add sums pairs of products in 16 bits, which add_pairs() then adds up. If so, at most
/// pair_quads(bits, unsigned weights) calls of dot_add fit in between.
inline constexpr bool adds_pairs = false;
constexpr int pair_quads(int, bool) { return 0; }

/// sum + the two 16-bit halves of each lane of `pairs`.
inline I32x16 add_pairs(const I32x16& sum, const I32x16& pairs) {
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = sum.lane[i] +
                static_cast<std::uint32_t>(static_cast<std::int16_t>(pairs.lane[i] & 0xffffu) +
                                           static_cast<std::int16_t>(pairs.lane[i] >> 16));
  return r;
}

/// The lowest two bytes of each lane as two words of 16 bits.
inline I32x16 widen_low_bytes(const I32x16& x) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = (x.lane[i] & 0xffu) | (x.lane[i] & 0xff00u) << 8;
  return r;
}

/// The highest two bytes, likewise.
inline I32x16 widen_high_bytes(const I32x16& x) { return widen_low_bytes(shift_right(x, 16)); }

/// Blocks that share a loaded weight: as many as there are registers for.
inline constexpr int block_tile = 1;

/// Rows that a 16-bit dot product takes at once, likewise: row_tile or more.
inline constexpr int half_row_tile = 4;

/// The widest codes whose integer dot products are faster than float ones: none here.
inline constexpr int widest_integer_dot = 0;

/// Operations on the two 16-bit integers of each lane, signed.
inline I32x16 sub_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = ((a.lane[i] - b.lane[i]) & 0xffffu) |
                ((a.lane[i] & 0xffff0000u) - (b.lane[i] & 0xffff0000u));
  return r;
}

inline std::int32_t pair_low(std::uint32_t x) { return static_cast<std::int16_t>(x); }
inline std::int32_t pair_high(std::uint32_t x) { return static_cast<std::int16_t>(x >> 16); }
inline std::uint32_t make_pair(std::int32_t low, std::int32_t high) {
  return (static_cast<std::uint32_t>(low) & 0xffffu) | static_cast<std::uint32_t>(high) << 16;
}

inline I32x16 min_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t x = a.lane[i];
    const std::uint32_t y = b.lane[i];
    r.lane[i] = make_pair(pair_low(x) < pair_low(y) ? pair_low(x) : pair_low(y),
                          pair_high(x) < pair_high(y) ? pair_high(x) : pair_high(y));
  }
  return r;
}

inline I32x16 max_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t x = a.lane[i];
    const std::uint32_t y = b.lane[i];
    r.lane[i] = make_pair(pair_low(x) > pair_low(y) ? pair_low(x) : pair_low(y),
                          pair_high(x) > pair_high(y) ? pair_high(x) : pair_high(y));
  }
  return r;
}

/// (a * b + 2^14) >> 15.
inline I32x16 multiply_pairs(const I32x16& a, const I32x16& b) {
  constexpr std::int32_t half = 1 << 14;
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = make_pair((pair_low(a.lane[i]) * pair_low(b.lane[i]) + half) >> 15,
                          (pair_high(a.lane[i]) * pair_high(b.lane[i]) + half) >> 15);
  return r;
}

/// sum + the dot product of the two integers, modulo 2^32.
inline I32x16 dot_pairs(const I32x16& sum, const I32x16& a, const I32x16& b) {
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = sum.lane[i] +
                static_cast<std::uint32_t>(pair_low(a.lane[i]) * pair_low(b.lane[i])) +
                static_cast<std::uint32_t>(pair_high(a.lane[i]) * pair_high(b.lane[i]));
  return r;
}

/// Byte b of a lane is the same lane of x[b], saturated to 0..255.
inline I32x16 to_bytes(const I32x16 (&x)[4]) {
  I32x16 r{};
  for (int b = 0; b < 4; ++b)
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t code = x[b].lane[i];
      const std::uint32_t byte = code < 256u ? code : code < 0x80000000u ? 255u : 0u;
      r.lane[i] |= byte << 8 * b;
    }
  return r;
}

/// Transposes 16 x 16 bytes: byte b of lane t of x[q] becomes byte t % 4 of lane 4 q + b of x[t / 4].
inline void transpose_bytes(I32x16 (&x)[4]) {
  I32x16 r[4] = {};
  for (int q = 0; q < 4; ++q)
    for (int t = 0; t < 16; ++t)
      for (int b = 0; b < 4; ++b)
        r[t / 4].lane[4 * q + b] |= (x[q].lane[t] >> 8 * b & 0xffu) << t % 4 * 8;
  for (int q = 0; q < 4; ++q) x[q] = r[q];
}

/// The minima of unsigned bytes.
inline I32x16 min_bytes(const I32x16& a, const I32x16& b) {
  I32x16 r{};
  for (int byte = 0; byte < 32; byte += 8)
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t x = a.lane[i] & 0xffu << byte;
      const std::uint32_t y = b.lane[i] & 0xffu << byte;
      r.lane[i] |= x < y ? x : y;
    }
  return r;
}

/// The bits of floats.
inline I32x16 bits_of(const F32x16& x) {
  I32x16 r;
  std::memcpy(r.lane, x.lane, sizeof r.lane);
  return r;
}

/// The bits of the nearest fp16, half to even, in every rounding mode.
inline I32x16 to_f16_bits(const F32x16& x) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = to_f16(x.lane[i]).bits;
  return r;
}

/// The floats with these fp16 bits, exactly.
inline F32x16 from_f16_bits(const I32x16& x) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = to_float(F16{static_cast<std::uint16_t>(x.lane[i])});
  return r;
}

/// 1/x correctly rounded for lanes that hold a finite fp16 value above 0; 0 for 0.
inline F32x16 reciprocal(const F32x16& x) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = reciprocal(to_f16(x.lane[i]));
  return r;
}

/// Transposes 16 rows of 8 values to 8 consecutive lines of 16. Eight rows begin at `first`, eight at
/// `second`, each `stride` after the one before.
inline void transpose_halves(const F16* first, const F16* second, std::ptrdiff_t stride,
                             F16* lines) {
  for (int c = 0; c < 8; ++c)
    for (int r = 0; r < 8; ++r) {
      lines[16 * c + r] = first[r * stride + c];
      lines[16 * c + 8 + r] = second[r * stride + c];
    }
}

/// Converts signed integers; exact for magnitudes up to 2^24.
inline F32x16 to_floats(const I32x16& x) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(static_cast<std::int32_t>(x.lane[i]));
  return r;
}

/// Rounds lanes in [0, 2^22) to the nearest integer, half to even, in any rounding mode.
inline I32x16 round_to_ints(const F32x16& x) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<std::uint32_t>(round_half_even(x.lane[i]));
  return r;
}

/// x * factor, within -32768..32767, rounded to a nearest integer in the low 16 bits of each lane. The
/// upper 16 bits may hold anything.
inline I32x16 round_product(const F32x16& x, const F32x16& factor) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) {
    const float product = x.lane[i] * factor.lane[i];
    r.lane[i] = static_cast<std::uint32_t>(
        static_cast<std::int32_t>(product + (product < 0.0f ? -0.5f : 0.5f)));
  }
  return r;
}

/// The whole part of x, within 0..32767, in the low 16 bits of each lane. The upper 16 bits may hold
/// anything.
inline I32x16 truncate(const F32x16& x) {
  I32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = static_cast<std::uint32_t>(static_cast<std::int32_t>(x.lane[i]));
  return r;
}

/// Rounds x in [-126, 0] to a nearest whole number.
inline F32x16 to_whole(const F32x16& x) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(static_cast<int>(x.lane[i] - 0.5f));
  return r;
}

/// x * 2^whole for whole numbers in [-126, 0] and x in [1/2, 2], by adding to the exponent bits.
inline F32x16 scale_by_exponent(const F32x16& x, const F32x16& whole) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t exponent = static_cast<std::uint32_t>(static_cast<int>(whole.lane[i]));
    r.lane[i] = bit_cast<float>(bit_cast<std::uint32_t>(x.lane[i]) + (exponent << 23));
  }
  return r;
}
