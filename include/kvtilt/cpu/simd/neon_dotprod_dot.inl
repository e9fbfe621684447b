// SPDX-License-Identifier: MIT
// The integer dot products of neon.inl, with SDOT and UDOT (FEAT_DotProd).

/// dot_add on one register, for codes of up to 7 bits: SDOT takes the codes as signed bytes, too.
KVTILT_INLINE uint32x4_t dot_add(uint32x4_t sum, uint32x4_t codes, uint32x4_t weights) {
#if defined(__clang__) && __clang_major__ < 16  // lacks the intrinsic unless -march has dotprod
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(weights));
  return sum;
#else
  return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_s8_u32(codes),
                                         vreinterpretq_s8_u32(weights)));
#endif
}

/// The same for unsigned weights (UDOT).
KVTILT_INLINE uint32x4_t dot_add_unsigned(uint32x4_t sum, uint32x4_t codes, uint32x4_t weights) {
#if defined(__clang__) && __clang_major__ < 16
  __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(weights));
  return sum;
#else
  return vdotq_u32(sum, vreinterpretq_u8_u32(codes), vreinterpretq_u8_u32(weights));
#endif
}
