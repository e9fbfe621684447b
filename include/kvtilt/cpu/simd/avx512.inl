// SPDX-License-Identifier: MIT
// The primitives of scalar.inl on 512-bit registers (AVX-512 F, BW, DQ, VL, VNNI). Included
// inside a target region and a kernel namespace.

struct F32x16 {
  __m512 v;
};

struct I32x16 {
  __m512i v;
};

inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }

inline void store(float* p, const F32x16& x) { _mm512_storeu_ps(p, x.v); }

inline F32x16 load_f16(const F16* p, int count) {
  if (count == 8)
    return {_mm512_zextps256_ps512(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

inline F32x16 load_bf16(const BF16* p) {
  const __m512i words =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
}

inline void store_f16(F16* p, const F32x16& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline F32x16 add(const F32x16& a, const F32x16& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(const F32x16& a, const F32x16& b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(const F32x16& a, const F32x16& b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 divide(const F32x16& a, const F32x16& b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 min(const F32x16& a, const F32x16& b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 max(const F32x16& a, const F32x16& b) { return {_mm512_max_ps(a.v, b.v)}; }

inline F32x16 multiply_add(const F32x16& a, const F32x16& b, const F32x16& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

inline F32x16 keep(const F32x16& x, LaneMask mask, float other) {
  return {_mm512_mask_blend_ps(mask, _mm512_set1_ps(other), x.v)};
}

inline F32x16 magnitude(const F32x16& x) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), x.v)}; }

inline F32x16 max_magnitude(const F32x16& a, const F32x16& x) {
  return {_mm512_range_ps(a.v, x.v, 0b1011)};  // maximum of magnitudes, sign cleared
}

inline F32x16 with_sign(const F32x16& x, const F32x16& sign) {
  return {_mm512_or_ps(x.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
}

inline LaneMask less(const F32x16& a, const F32x16& b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}

inline F32x16 lane_indices() {
  return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}

inline Floats4 reduce_add(const F32x16 (&x)[4]) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0].v, x[1].v),  //
                                  _mm512_unpackhi_ps(x[0].v, x[1].v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2].v, x[3].v),  //
                                  _mm512_unpackhi_ps(x[2].v, x[3].v));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline Floats4 reduce_max(const F32x16 (&x)[4]) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(x[0].v, x[1].v),  //
                                  _mm512_unpackhi_ps(x[0].v, x[1].v));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(x[2].v, x[3].v),  //
                                  _mm512_unpackhi_ps(x[2].v, x[3].v));
  const __m512 abcd =
      _mm512_max_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline LaneMask nonzero(const I32x16& x) { return _mm512_test_epi32_mask(x.v, x.v); }

inline I32x16 load_line(const std::byte* p, int lanes) {
  if (lanes == 8)
    return {_mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  return {_mm512_loadu_si512(p)};
}

inline void store_line(std::byte* p, const I32x16& x, int lanes) {
  if (lanes == 8)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(x.v));
  else
    _mm512_storeu_si512(p, x.v);
}

inline I32x16 broadcast_bits(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }

inline I32x16 shift_left(const I32x16& x, int bits) {
  return {_mm512_slli_epi32(x.v, static_cast<unsigned>(bits))};
}

inline I32x16 shift_right(const I32x16& x, int bits) {
  return {_mm512_srli_epi32(x.v, static_cast<unsigned>(bits))};
}

inline I32x16 shift_right_signed(const I32x16& x, int bits) {
  return {_mm512_srai_epi32(x.v, static_cast<unsigned>(bits))};
}

inline I32x16 bit_and(const I32x16& a, const I32x16& b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 bit_or(const I32x16& a, const I32x16& b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I32x16 add_ints(const I32x16& a, const I32x16& b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 sub_ints(const I32x16& a, const I32x16& b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32x16 mul_ints(const I32x16& a, const I32x16& b) { return {_mm512_mullo_epi32(a.v, b.v)}; }

inline I32x16 dot_add(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  return {_mm512_dpbusd_epi32(sum.v, codes.v, weights.v)};
}

inline I32x16 dot_add_unsigned(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  return {_mm512_dpbusd_epi32(sum.v, weights.v, codes.v)};
}

// Keeps the words in the order of the lanes.
inline I32x16 pack_words(const I32x16& first, const I32x16& second) {
  const __m512i even =
      _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                       24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return {_mm512_permutex2var_epi16(first.v, even, second.v)};
}

inline void store_words(std::int16_t* p, const I32x16& words) { _mm512_storeu_si512(p, words.v); }

inline void store_low_bytes(std::int8_t* p, const I32x16& words) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi16_epi8(words.v));
}

inline I32x16 widen_low_bytes(const I32x16& x) {
  const __m512i order = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  return {_mm512_shuffle_epi8(x.v, order)};
}

inline I32x16 widen_high_bytes(const I32x16& x) {
  const __m512i order = _mm512_broadcast_i32x4(
      _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
  return {_mm512_shuffle_epi8(x.v, order)};
}

inline constexpr bool adds_pairs = false;
constexpr int pair_quads(int, bool) { return 0; }
inline I32x16 add_pairs(const I32x16& sum, const I32x16&) { return sum; }

inline constexpr int block_tile = 2;
inline constexpr int half_row_tile = 8;
inline constexpr int widest_integer_dot = 8;

inline I32x16 sub_pairs(const I32x16& a, const I32x16& b) { return {_mm512_sub_epi16(a.v, b.v)}; }
inline I32x16 min_pairs(const I32x16& a, const I32x16& b) { return {_mm512_min_epi16(a.v, b.v)}; }
inline I32x16 max_pairs(const I32x16& a, const I32x16& b) { return {_mm512_max_epi16(a.v, b.v)}; }
inline I32x16 min_bytes(const I32x16& a, const I32x16& b) { return {_mm512_min_epu8(a.v, b.v)}; }

inline I32x16 multiply_pairs(const I32x16& a, const I32x16& b) {
  return {_mm512_mulhrs_epi16(a.v, b.v)};
}

inline I32x16 dot_pairs(const I32x16& sum, const I32x16& a, const I32x16& b) {
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
}

inline I32x16 to_bytes(const I32x16 (&x)[4]) {
  const __m512i bytes =
      _mm512_packus_epi16(_mm512_packs_epi32(x[0].v, x[1].v), _mm512_packs_epi32(x[2].v, x[3].v));
  return {_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                         0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)))};
}

inline void transpose_bytes(I32x16 (&x)[4]) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i rows[4];
  KVTILT_UNROLL(4)
  for (int q = 0; q < 4; ++q) rows[q] = _mm512_shuffle_epi8(x[q].v, order);
  const __m512i low01 = _mm512_shuffle_i32x4(rows[0], rows[1], 0x44);  // quarters 0 and 1 of both
  const __m512i high01 = _mm512_shuffle_i32x4(rows[0], rows[1], 0xee);
  const __m512i low23 = _mm512_shuffle_i32x4(rows[2], rows[3], 0x44);
  const __m512i high23 = _mm512_shuffle_i32x4(rows[2], rows[3], 0xee);
  x[0] = {_mm512_shuffle_i32x4(low01, low23, 0x88)};
  x[1] = {_mm512_shuffle_i32x4(low01, low23, 0xdd)};
  x[2] = {_mm512_shuffle_i32x4(high01, high23, 0x88)};
  x[3] = {_mm512_shuffle_i32x4(high01, high23, 0xdd)};
}

inline I32x16 bits_of(const F32x16& x) { return {_mm512_castps_si512(x.v)}; }

inline I32x16 to_f16_bits(const F32x16& x) {
  return {
      _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
}

inline F32x16 from_f16_bits(const I32x16& x) {
  return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x.v))};
}

// Two Newton steps: the second rounds correctly any estimate within 64 units in the last place.
inline F32x16 reciprocal(const F32x16& x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 y = _mm512_rcp14_ps(x.v);
  y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x.v, y, one), y);
  y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x.v, y, one), y);
  return keep({y}, nonzero(bits_of(x)), 0.0f);
}

#include <kvtilt/cpu/simd/x86_transpose.inl>

inline F32x16 to_floats(const I32x16& x) { return {_mm512_cvtepi32_ps(x.v)}; }

inline I32x16 round_to_ints(const F32x16& x) {
  return {_mm512_cvt_roundps_epi32(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// Adding 3 * 2^22 leaves the integer in the lowest mantissa bits: one operation instead of two.
inline I32x16 round_product(const F32x16& x, const F32x16& factor) {
  return {_mm512_castps_si512(_mm512_fmadd_ps(x.v, factor.v, _mm512_set1_ps(12582912.0f)))};
}

inline I32x16 truncate(const F32x16& x) { return {_mm512_cvttps_epi32(x.v)}; }

inline F32x16 to_whole(const F32x16& x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline F32x16 scale_by_exponent(const F32x16& x, const F32x16& whole) {
  return {_mm512_scalef_ps(x.v, whole.v)};
}
