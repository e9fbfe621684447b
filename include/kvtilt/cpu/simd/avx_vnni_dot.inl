// SPDX-License-Identifier: MIT
// The integer dot products of avx2.inl, with AVX-VNNI. Each works on one register; the unsigned
// operand of dot_add comes first.

inline constexpr bool adds_pairs = false;
constexpr int pair_quads(int, bool) { return 0; }

inline __m256i dot_add(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }

inline __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) {
  return _mm256_dpwssd_epi32(sum, a, b);
}

inline __m256i add_pairs(__m256i sum, __m256i) { return sum; }
