// SPDX-License-Identifier: MIT
// The primitives of scalar.inl on pairs of 256-bit registers (AVX2, FMA, F16C). Included
// inside a target region and a kernel namespace, after avx2_dot.inl or avx_vnni_dot.inl.

struct F32x16 {
  __m256 low;
  __m256 high;
};

struct I32x16 {
  __m256i low;
  __m256i high;
};

inline F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

inline void store(float* p, const F32x16& x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}

inline F32x16 load_f16(const F16* p, int count) {
  const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  if (count == 8) return {low, _mm256_setzero_ps()};
  return {low, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

inline F32x16 load_bf16(const BF16* p) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words));
  const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}

inline void store_f16(F16* p, const F32x16& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}

inline F32x16 add(const F32x16& a, const F32x16& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline F32x16 sub(const F32x16& a, const F32x16& b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

inline F32x16 mul(const F32x16& a, const F32x16& b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

inline F32x16 multiply_add(const F32x16& a, const F32x16& b, const F32x16& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline F32x16 min(const F32x16& a, const F32x16& b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline F32x16 max(const F32x16& a, const F32x16& b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

/// All ones in those of eight lanes whose bit is set.
inline __m256 lanes_of(int mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bit), bit));
}

inline F32x16 keep(const F32x16& x, LaneMask mask, float other) {
  const __m256 fill = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(fill, x.low, lanes_of(mask)),
          _mm256_blendv_ps(fill, x.high, lanes_of(mask >> 8))};
}

inline F32x16 divide(const F32x16& a, const F32x16& b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

inline F32x16 magnitude(const F32x16& x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

inline F32x16 max_magnitude(const F32x16& a, const F32x16& x) { return max(a, magnitude(x)); }

inline F32x16 with_sign(const F32x16& x, const F32x16& sign) {
  const __m256 mask = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(x.low, _mm256_and_ps(mask, sign.low)),
          _mm256_or_ps(x.high, _mm256_and_ps(mask, sign.high))};
}

inline LaneMask less(const F32x16& a, const F32x16& b) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ));
  return static_cast<LaneMask>(low | high << 8);
}

inline F32x16 lane_indices() {
  return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15)};
}

inline Floats4 reduce_add(const F32x16 (&x)[4]) {
  __m256 sum[4];
  KVTILT_UNROLL(4)
  for (int r = 0; r < 4; ++r) sum[r] = _mm256_add_ps(x[r].low, x[r].high);
  const __m256 ab = _mm256_hadd_ps(sum[0], sum[1]);
  const __m256 abcd = _mm256_hadd_ps(ab, _mm256_hadd_ps(sum[2], sum[3]));
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline Floats4 reduce_max(const F32x16 (&x)[4]) {
  __m256 m[4];
  KVTILT_UNROLL(4)
  for (int r = 0; r < 4; ++r) m[r] = _mm256_max_ps(x[r].low, x[r].high);
  const __m256 ab = _mm256_max_ps(_mm256_unpacklo_ps(m[0], m[1]), _mm256_unpackhi_ps(m[0], m[1]));
  const __m256 cd = _mm256_max_ps(_mm256_unpacklo_ps(m[2], m[3]), _mm256_unpackhi_ps(m[2], m[3]));
  const __m256 abcd =
      _mm256_max_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  return _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline LaneMask nonzero(const I32x16& x) {
  const __m256i zero = _mm256_setzero_si256();
  const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.low, zero)));
  const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.high, zero)));
  return static_cast<LaneMask>(~(low | high << 8));
}

inline I32x16 load_line(const std::byte* p, int lanes) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if (lanes == 8) return {low, _mm256_setzero_si256()};
  return {low, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}

inline void store_line(std::byte* p, const I32x16& x, int lanes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.low);
  if (lanes == 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.high);
}

inline I32x16 broadcast_bits(std::uint32_t x) {
  const __m256i word = _mm256_set1_epi32(static_cast<int>(x));
  return {word, word};
}

inline I32x16 shift_left(const I32x16& x, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  return {_mm256_sll_epi32(x.low, count), _mm256_sll_epi32(x.high, count)};
}

inline I32x16 shift_right(const I32x16& x, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  return {_mm256_srl_epi32(x.low, count), _mm256_srl_epi32(x.high, count)};
}

inline I32x16 bit_and(const I32x16& a, const I32x16& b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}

inline I32x16 bit_or(const I32x16& a, const I32x16& b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

inline I32x16 add_ints(const I32x16& a, const I32x16& b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

inline I32x16 sub_ints(const I32x16& a, const I32x16& b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

inline I32x16 mul_ints(const I32x16& a, const I32x16& b) {
  return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}

inline I32x16 shift_right_signed(const I32x16& x, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  return {_mm256_sra_epi32(x.low, count), _mm256_sra_epi32(x.high, count)};
}

inline I32x16 dot_add(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  return {dot_add(sum.low, codes.low, weights.low), dot_add(sum.high, codes.high, weights.high)};
}

inline I32x16 dot_add_unsigned(const I32x16& sum, const I32x16& codes, const I32x16& weights) {
  return dot_add(sum, weights, codes);
}

inline I32x16 add_pairs(const I32x16& sum, const I32x16& pairs) {
  return {add_pairs(sum.low, pairs.low), add_pairs(sum.high, pairs.high)};
}

// Packs within 128-bit halves: groups of four words come in the order 0, 2, 1, 3.
inline I32x16 pack_words(const I32x16& first, const I32x16& second) {
  return {_mm256_packs_epi32(first.low, first.high), _mm256_packs_epi32(second.low, second.high)};
}

inline void store_words(std::int16_t* p, const I32x16& words) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words.low, 0xd8));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16),
                      _mm256_permute4x64_epi64(words.high, 0xd8));
}

inline void store_low_bytes(std::int8_t* p, const I32x16& words) {
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  const __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(words.low, low_byte),
                                            _mm256_and_si256(words.high, low_byte));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}

inline I32x16 widen_low_bytes(const I32x16& x) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  return {_mm256_shuffle_epi8(x.low, order), _mm256_shuffle_epi8(x.high, order)};
}

inline I32x16 widen_high_bytes(const I32x16& x) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
  return {_mm256_shuffle_epi8(x.low, order), _mm256_shuffle_epi8(x.high, order)};
}

inline constexpr int block_tile = 1;
inline constexpr int half_row_tile = 4;

inline constexpr int widest_integer_dot = 8;

inline I32x16 sub_pairs(const I32x16& a, const I32x16& b) {
  return {_mm256_sub_epi16(a.low, b.low), _mm256_sub_epi16(a.high, b.high)};
}

inline I32x16 min_pairs(const I32x16& a, const I32x16& b) {
  return {_mm256_min_epi16(a.low, b.low), _mm256_min_epi16(a.high, b.high)};
}

inline I32x16 max_pairs(const I32x16& a, const I32x16& b) {
  return {_mm256_max_epi16(a.low, b.low), _mm256_max_epi16(a.high, b.high)};
}

inline I32x16 min_bytes(const I32x16& a, const I32x16& b) {
  return {_mm256_min_epu8(a.low, b.low), _mm256_min_epu8(a.high, b.high)};
}

inline I32x16 multiply_pairs(const I32x16& a, const I32x16& b) {
  return {_mm256_mulhrs_epi16(a.low, b.low), _mm256_mulhrs_epi16(a.high, b.high)};
}

inline I32x16 dot_pairs(const I32x16& sum, const I32x16& a, const I32x16& b) {
  return {dot_pairs(sum.low, a.low, b.low), dot_pairs(sum.high, a.high, b.high)};
}

inline __m256i to_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}

inline I32x16 to_bytes(const I32x16 (&x)[4]) {
  return {to_bytes(x[0].low, x[1].low, x[2].low, x[3].low),
          to_bytes(x[0].high, x[1].high, x[2].high, x[3].high)};
}

inline void transpose_bytes(I32x16 (&x)[4]) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  I32x16 rows[4];
  KVTILT_UNROLL(4)
  for (int q = 0; q < 4; ++q)
    rows[q] = {_mm256_shuffle_epi8(x[q].low, order), _mm256_shuffle_epi8(x[q].high, order)};
  x[0] = {_mm256_permute2x128_si256(rows[0].low, rows[1].low, 0x20),
          _mm256_permute2x128_si256(rows[2].low, rows[3].low, 0x20)};
  x[1] = {_mm256_permute2x128_si256(rows[0].low, rows[1].low, 0x31),
          _mm256_permute2x128_si256(rows[2].low, rows[3].low, 0x31)};
  x[2] = {_mm256_permute2x128_si256(rows[0].high, rows[1].high, 0x20),
          _mm256_permute2x128_si256(rows[2].high, rows[3].high, 0x20)};
  x[3] = {_mm256_permute2x128_si256(rows[0].high, rows[1].high, 0x31),
          _mm256_permute2x128_si256(rows[2].high, rows[3].high, 0x31)};
}

inline I32x16 bits_of(const F32x16& x) {
  return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)};
}

inline I32x16 to_f16_bits(const F32x16& x) {
  return {_mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT)),
          _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT))};
}

inline F32x16 from_f16_bits(const I32x16& x) {
  const __m256i halves = _mm256_packus_epi32(x.low, x.high);
  const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);  // undoes packing by halves
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1))};
}

// Two Newton steps: the second rounds correctly any estimate within 64 units in the last place.
inline __m256 reciprocal(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  __m256 y = _mm256_rcp_ps(x);
  y = _mm256_fmadd_ps(y, _mm256_fnmadd_ps(x, y, one), y);
  return _mm256_fmadd_ps(y, _mm256_fnmadd_ps(x, y, one), y);
}

inline F32x16 reciprocal(const F32x16& x) {
  return keep({reciprocal(x.low), reciprocal(x.high)}, nonzero(bits_of(x)), 0.0f);
}

#include <kvtilt/cpu/simd/x86_transpose.inl>

inline F32x16 to_floats(const I32x16& x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}

inline I32x16 round_to_ints(const F32x16& x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_cvtps_epi32(_mm256_round_ps(x.low, nearest)),
          _mm256_cvtps_epi32(_mm256_round_ps(x.high, nearest))};
}

inline I32x16 round_product(const F32x16& x, const F32x16& factor) {
  const F32x16 product = mul(x, factor);
  return {_mm256_cvtps_epi32(product.low), _mm256_cvtps_epi32(product.high)};
}

inline I32x16 truncate(const F32x16& x) {
  return {_mm256_cvttps_epi32(x.low), _mm256_cvttps_epi32(x.high)};
}

inline F32x16 to_whole(const F32x16& x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, nearest), _mm256_round_ps(x.high, nearest)};
}

inline __m256 scale_by_exponent(__m256 x, __m256 whole) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}

inline F32x16 scale_by_exponent(const F32x16& x, const F32x16& whole) {
  return {scale_by_exponent(x.low, whole.low), scale_by_exponent(x.high, whole.high)};
}
