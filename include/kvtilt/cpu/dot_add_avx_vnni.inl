// SPDX-License-Identifier: MIT
// The integer dot product of simd_avx2.inl, with AVX-VNNI.

/// The sums of dot_add of one register.
inline __m256i dot_add(__m256i sum, __m256i codes, __m256i weights) {
  return _mm256_dpbusd_epi32(sum, codes, weights);
}

inline constexpr int widest_integer_dot = 8;
