// SPDX-License-Identifier: MIT
// The integer dot products of avx2.inl, without AVX-VNNI. Each works on one register; the unsigned
// operand of dot_add comes first.

inline constexpr bool adds_pairs = true;
constexpr int pair_quads(int bits, bool unsigned_weights) {
  return 32767 / (2 * (unsigned_weights ? 255 : 127) * max_code(bits));
}

inline __m256i dot_add(__m256i sum, __m256i a, __m256i b) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
  __asm__("" : "+x"(sum));  // else g++ sums the products first, and spills the sums
  return sum;
}

inline __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  __asm__("" : "+x"(sum));
  return sum;
}

inline __m256i add_pairs(__m256i sum, __m256i pairs) {
  return dot_pairs(sum, pairs, _mm256_set1_epi16(1));
}
