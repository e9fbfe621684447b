// SPDX-License-Identifier: MIT
// The integer dot product of neon.inl, without instructions for it.

/// The sums of dot_add of one register, for codes of up to 7 bits: pairs of products are added in 16
/// bits.
KVTILT_INLINE uint32x4_t dot_add(uint32x4_t sum, uint32x4_t codes, uint32x4_t weights) {
  const int8x16_t code = vreinterpretq_s8_u32(codes);
  const int8x16_t weight = vreinterpretq_s8_u32(weights);
  const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(weight));
  const int16x8_t high = vmull_high_s8(code, weight);
  return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), vpaddq_s16(low, high)));
}
