// SPDX-License-Identifier: MIT
// The integer dot product of simd_avx2.inl, without AVX-VNNI.

/// The sums of dot_add of one register.
inline __m256i dot_add(__m256i sum, __m256i codes, __m256i weights) {
  const __m256i pairs = _mm256_maddubs_epi16(codes, weights);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Wider codes need two planes of weights, and float32 is faster. (maddubs would take 7 bits: it adds
// pairs of products in 16 bits.)
inline constexpr int widest_integer_dot = 4;
