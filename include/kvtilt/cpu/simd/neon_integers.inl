// SPDX-License-Identifier: MIT
// The NEON primitives on integers, and the conversions between integers and floats.

KVTILT_INLINE LaneMask nonzero(const I32x16& x) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vtstq_u32(x.v[i], x.v[i]);
  return mask_of(r);
}

KVTILT_INLINE I32x16 load_line(const std::byte* p, int lanes) {
  I32x16 r{};
  KVTILT_UNROLL(2)
  for (int i = 0; i < 2; ++i) std::memcpy(&r.v[i], p + 16 * i, 16);
  if (lanes == 8) return r;
  KVTILT_UNROLL(2)
  for (int i = 2; i < 4; ++i) std::memcpy(&r.v[i], p + 16 * i, 16);
  return r;
}

KVTILT_INLINE void store_line(std::byte* p, const I32x16& x, int lanes) {
  std::memcpy(p, &x.v[0], 16);
  std::memcpy(p + 16, &x.v[1], 16);
  if (lanes == 8) return;
  std::memcpy(p + 32, &x.v[2], 16);
  std::memcpy(p + 48, &x.v[3], 16);
}

KVTILT_INLINE I32x16 broadcast_bits(std::uint32_t x) {
  const uint32x4_t lanes = vdupq_n_u32(x);
  return {{lanes, lanes, lanes, lanes}};
}

// Shifts use the vector extension's operators: the intrinsics would not compile to immediate shifts
// where the count becomes a constant only by unrolling.
KVTILT_INLINE I32x16 shift_left(const I32x16& x, int bits) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = x.v[i] << static_cast<std::uint32_t>(bits);
  return r;
}

KVTILT_INLINE I32x16 shift_right(const I32x16& x, int bits) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = x.v[i] >> static_cast<std::uint32_t>(bits);
  return r;
}

KVTILT_INLINE I32x16 bit_and(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vandq_u32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE I32x16 bit_or(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vorrq_u32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE I32x16 add_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vaddq_u32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE I32x16 sub_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vsubq_u32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE I32x16 mul_ints(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vmulq_u32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE I32x16 shift_right_signed(const I32x16& x, int bits) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_u32_s32(vreinterpretq_s32_u32(x.v[i]) >> bits);
  return r;
}

KVTILT_INLINE I32x16 dot_add(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = dot_add(sum.v[i], codes.v[i], weights.v[i]);
#if !defined(__clang__)
  // Emits nothing, but keeps g++ 12 from interleaving a unit's quads, which would spill the sums.
  __asm__ volatile("" : "+w"(r.v[3]));
#endif
  return r;
}

KVTILT_INLINE I32x16 dot_add_unsigned(const I32x16& sum, const I32x16& codes,
                                      const I32x16& weights) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = dot_add_unsigned(sum.v[i], codes.v[i], weights.v[i]);
#if !defined(__clang__)
  __asm__ volatile("" : "+w"(r.v[3]));
#endif
  return r;
}

inline constexpr bool adds_pairs = false;
constexpr int pair_quads(int, bool) { return 0; }
KVTILT_INLINE I32x16 add_pairs(const I32x16& sum, const I32x16&) { return sum; }

/// The low 16 bits of lanes 8 * half to 8 * half + 7.
KVTILT_INLINE int16x8_t narrow(const I32x16& x, int half) {
  return vuzp1q_s16(vreinterpretq_s16_u32(x.v[2 * half]), vreinterpretq_s16_u32(x.v[2 * half + 1]));
}

KVTILT_INLINE I32x16 pack_words(const I32x16& first, const I32x16& second) {
  return {{vreinterpretq_u32_s16(narrow(first, 0)), vreinterpretq_u32_s16(narrow(first, 1)),
           vreinterpretq_u32_s16(narrow(second, 0)), vreinterpretq_u32_s16(narrow(second, 1))}};
}

KVTILT_INLINE void store_words(std::int16_t* p, const I32x16& words) {
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) vst1q_s16(p + 8 * i, vreinterpretq_s16_u32(words.v[i]));
}

KVTILT_INLINE void store_low_bytes(std::int8_t* p, const I32x16& words) {
  KVTILT_UNROLL(2)
  for (int i = 0; i < 2; ++i)
    vst1q_s8(p + 16 * i, vuzp1q_s8(vreinterpretq_s8_u32(words.v[2 * i]),
                                   vreinterpretq_s8_u32(words.v[2 * i + 1])));
}

KVTILT_INLINE I32x16 widen_low_bytes(const I32x16& x) {
  const I32x16 low = bit_and(x, broadcast_bits(0xffu));
  return bit_or(low, shift_left(bit_and(x, broadcast_bits(0xff00u)), 8));
}

KVTILT_INLINE I32x16 widen_high_bytes(const I32x16& x) {
  return widen_low_bytes(shift_right(x, 16));
}

// Wider codes need weights of two bytes, where SMULL and ADDP are no faster than float32. USDOT
// (unsigned codes) would gain nothing: codes of up to 4 bits are non-negative signed bytes already.
inline constexpr int widest_integer_dot = 4;

// The sums of four rows take 16 of the 32 registers; twice that would leave none for the codes.
inline constexpr int block_tile = 1;
inline constexpr int half_row_tile = 4;

KVTILT_INLINE I32x16 sub_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_u32_s16(
        vsubq_s16(vreinterpretq_s16_u32(a.v[i]), vreinterpretq_s16_u32(b.v[i])));
  return r;
}

KVTILT_INLINE I32x16 min_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_u32_s16(
        vminq_s16(vreinterpretq_s16_u32(a.v[i]), vreinterpretq_s16_u32(b.v[i])));
  return r;
}

KVTILT_INLINE I32x16 max_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_u32_s16(
        vmaxq_s16(vreinterpretq_s16_u32(a.v[i]), vreinterpretq_s16_u32(b.v[i])));
  return r;
}

KVTILT_INLINE I32x16 min_bytes(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    r.v[i] =
        vreinterpretq_u32_u8(vminq_u8(vreinterpretq_u8_u32(a.v[i]), vreinterpretq_u8_u32(b.v[i])));
  return r;
}

KVTILT_INLINE I32x16 multiply_pairs(const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i)
    r.v[i] = vreinterpretq_u32_s16(
        vqrdmulhq_s16(vreinterpretq_s16_u32(a.v[i]), vreinterpretq_s16_u32(b.v[i])));
  return r;
}

KVTILT_INLINE I32x16 dot_pairs(const I32x16& sum, const I32x16& a, const I32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const int16x8_t x = vreinterpretq_s16_u32(a.v[i]);
    const int16x8_t y = vreinterpretq_s16_u32(b.v[i]);
    const int32x4_t products =
        vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
    r.v[i] = vaddq_u32(sum.v[i], vreinterpretq_u32_s32(products));
  }
  return r;
}

KVTILT_INLINE I32x16 to_bytes(const I32x16 (&x)[4]) {
  I32x16 r = broadcast_bits(0);
  KVTILT_UNROLL(4)
  for (int b = 0; b < 4; ++b) {
    KVTILT_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const int32x4_t code = vmaxq_s32(vreinterpretq_s32_u32(x[b].v[i]), vdupq_n_s32(0));
      const uint32x4_t byte = vreinterpretq_u32_s32(vminq_s32(code, vdupq_n_s32(255)));
      r.v[i] = vorrq_u32(r.v[i], byte << static_cast<std::uint32_t>(8 * b));
    }
  }
  return r;
}

KVTILT_INLINE void transpose_bytes(I32x16 (&x)[4]) {
  constexpr std::uint8_t columns[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t order = vld1q_u8(columns);
  I32x16 rows[4];
  KVTILT_UNROLL(4)
  for (int q = 0; q < 4; ++q) {
    KVTILT_UNROLL(4)
    for (int i = 0; i < 4; ++i)
      rows[i].v[q] = vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(x[q].v[i]), order));
  }
  KVTILT_UNROLL(4)
  for (int q = 0; q < 4; ++q) x[q] = rows[q];
}

KVTILT_INLINE I32x16 bits_of(const F32x16& x) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_u32_f32(x.v[i]);
  return r;
}

KVTILT_INLINE I32x16 to_f16_bits(const F32x16& x) {
  F16 halves[16];
  store_f16(halves, x);
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    uint16x4_t words;
    std::memcpy(&words, halves + 4 * i, sizeof words);
    r.v[i] = vmovl_u16(words);
  }
  return r;
}

KVTILT_INLINE F32x16 from_f16_bits(const I32x16& x) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(x.v[i])));
  return r;
}

// Three Newton steps. The first two bring the 8-bit estimate within 64 units in the last place,
// which the third rounds correctly.
KVTILT_INLINE F32x16 reciprocal(const F32x16& x) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    float32x4_t y = vrecpeq_f32(x.v[i]);
    KVTILT_UNROLL(3)
    for (int step = 0; step < 3; ++step) y = vfmaq_f32(y, vfmsq_f32(one, x.v[i], y), y);
    r.v[i] = y;
  }
  return keep(r, nonzero(bits_of(x)), 0.0f);
}

KVTILT_INLINE void transpose_halves(const F16* first, const F16* second, std::ptrdiff_t stride,
                                    F16* lines) {
  const F16* starts[2] = {first, second};
  for (int half = 0; half < 2; ++half) {
    uint16x8_t rows[8];
    KVTILT_UNROLL(8)
    for (int r = 0; r < 8; ++r) std::memcpy(&rows[r], starts[half] + r * stride, sizeof rows[r]);
    uint32x4_t pairs[8];  // [k], [k + 4]: even and odd columns of rows 2k and 2k + 1
    KVTILT_UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      pairs[k] = vreinterpretq_u32_u16(vtrn1q_u16(rows[2 * k], rows[2 * k + 1]));
      pairs[k + 4] = vreinterpretq_u32_u16(vtrn2q_u16(rows[2 * k], rows[2 * k + 1]));
    }
    KVTILT_UNROLL(2)
    for (int odd = 0; odd < 2; ++odd) {
      const uint32x4_t* p = pairs + 4 * odd;
      // [0]: columns odd and odd + 4; [1]: columns odd + 2 and odd + 6; of four rows each.
      const uint64x2_t top[2] = {vreinterpretq_u64_u32(vtrn1q_u32(p[0], p[1])),
                                 vreinterpretq_u64_u32(vtrn2q_u32(p[0], p[1]))};
      const uint64x2_t low[2] = {vreinterpretq_u64_u32(vtrn1q_u32(p[2], p[3])),
                                 vreinterpretq_u64_u32(vtrn2q_u32(p[2], p[3]))};
      KVTILT_UNROLL(2)
      for (int k = 0; k < 2; ++k) {
        const uint64x2_t left = vtrn1q_u64(top[k], low[k]);
        const uint64x2_t right = vtrn2q_u64(top[k], low[k]);
        std::memcpy(static_cast<void*>(lines + 16 * (2 * k + odd) + 8 * half), &left, sizeof left);
        std::memcpy(static_cast<void*>(lines + 16 * (2 * k + odd + 4) + 8 * half), &right,
                    sizeof right);
      }
    }
  }
}

KVTILT_INLINE F32x16 to_floats(const I32x16& x) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(vreinterpretq_s32_u32(x.v[i]));
  return r;
}

KVTILT_INLINE I32x16 round_to_ints(const F32x16& x) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_u32_s32(vcvtnq_s32_f32(x.v[i]));
  return r;
}

KVTILT_INLINE I32x16 round_product(const F32x16& x, const F32x16& factor) {
  return round_to_ints(mul(x, factor));
}

KVTILT_INLINE I32x16 truncate(const F32x16& x) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_u32_s32(vcvtq_s32_f32(x.v[i]));
  return r;
}

KVTILT_INLINE F32x16 to_whole(const F32x16& x) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vrndnq_f32(x.v[i]);
  return r;
}

KVTILT_INLINE F32x16 scale_by_exponent(const F32x16& x, const F32x16& whole) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t exponent = vreinterpretq_u32_s32(vcvtq_s32_f32(whole.v[i])) << 23;
    r.v[i] = vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x.v[i]), exponent));
  }
  return r;
}
