// SPDX-License-Identifier: MIT
// transpose_halves() of scalar.inl on 256-bit registers, for every instruction set that has
// them. Included by avx2.inl and avx512.inl.

/// Loads eight fp16 values from each of two rows.
inline __m256i load_halves(const F16* low, const F16* high) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

inline void transpose_halves(const F16* first, const F16* second, std::ptrdiff_t stride,
                             F16* lines) {
  __m256i rows[8];
  __m256i pairs[8];  // [2k], [2k + 1]: columns 0-3 and 4-7 of rows 2k and 2k + 1
  __m256i quads[8];
  KVTILT_UNROLL(8)
  for (int r = 0; r < 8; ++r) rows[r] = load_halves(first + r * stride, second + r * stride);
  KVTILT_UNROLL(4)
  for (int k = 0; k < 4; ++k) {
    pairs[2 * k] = _mm256_unpacklo_epi16(rows[2 * k], rows[2 * k + 1]);
    pairs[2 * k + 1] = _mm256_unpackhi_epi16(rows[2 * k], rows[2 * k + 1]);
  }
  KVTILT_UNROLL(4)
  for (int k = 0; k < 4; ++k) {  // four rows: 0-3 (k < 2) or 4-7; columns 0-3 (k even) or 4-7
    const int from = k / 2 * 4 + k % 2;
    quads[2 * k] = _mm256_unpacklo_epi32(pairs[from], pairs[from + 2]);
    quads[2 * k + 1] = _mm256_unpackhi_epi32(pairs[from], pairs[from + 2]);
  }
  __m256i* out = reinterpret_cast<__m256i*>(lines);
  KVTILT_UNROLL(4)
  for (int k = 0; k < 4; ++k) {
    _mm256_storeu_si256(out + 2 * k, _mm256_unpacklo_epi64(quads[k], quads[k + 4]));
    _mm256_storeu_si256(out + 2 * k + 1, _mm256_unpackhi_epi64(quads[k], quads[k + 4]));
  }
}
