// SPDX-License-Identifier: MIT
// The integer dot products of neon.inl, without dot-product instructions.

/// dot_add on one register, for codes of up to 7 bits: the codes are signed bytes, and pairs of
/// products are added in 16 bits.
KVTILT_INLINE uint32x4_t dot_add(uint32x4_t sum, uint32x4_t codes, uint32x4_t weights) {
  const int8x16_t code = vreinterpretq_s8_u32(codes);
  const int8x16_t weight = vreinterpretq_s8_u32(weights);
  const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(weight));
  const int16x8_t high = vmull_high_s8(code, weight);
  return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), vpaddq_s16(low, high)));
}

/// The same for unsigned weights.
KVTILT_INLINE uint32x4_t dot_add_unsigned(uint32x4_t sum, uint32x4_t codes, uint32x4_t weights) {
  const uint8x16_t code = vreinterpretq_u8_u32(codes);
  const uint8x16_t weight = vreinterpretq_u8_u32(weights);
  const uint16x8_t low = vmull_u8(vget_low_u8(code), vget_low_u8(weight));
  return vpadalq_u16(sum, vpaddq_u16(low, vmull_high_u8(code, weight)));
}
