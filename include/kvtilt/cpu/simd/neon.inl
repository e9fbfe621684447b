// SPDX-License-Identifier: MIT
// The primitives of scalar.inl on four 128-bit registers (AArch64). Included inside a kernel
// namespace, after neon_dot.inl or, in a target region, neon_dotprod_dot.inl.

struct F32x16 {
  float32x4_t v[4];
};

struct I32x16 {
  uint32x4_t v[4];
};

KVTILT_INLINE F32x16 broadcast(float x) {
  const float32x4_t lanes = vdupq_n_f32(x);
  return {{lanes, lanes, lanes, lanes}};
}

KVTILT_INLINE F32x16 load(const float* p) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vld1q_f32(p + 4 * i);
  return r;
}

KVTILT_INLINE void store(float* p, const F32x16& x) {
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}

/// Four fp16 values.
KVTILT_INLINE float32x4_t load_four_f16(const F16* p) {
  float16x4_t halves;
  std::memcpy(&halves, p, sizeof halves);
  return vcvt_f32_f16(halves);
}

KVTILT_INLINE F32x16 load_f16(const F16* p, int count) {
  F32x16 r{};
  KVTILT_UNROLL(2)
  for (int i = 0; i < 2; ++i) r.v[i] = load_four_f16(p + 4 * i);
  if (count == 8) return r;
  KVTILT_UNROLL(2)
  for (int i = 2; i < 4; ++i) r.v[i] = load_four_f16(p + 4 * i);
  return r;
}

KVTILT_INLINE void store_f16(F16* p, const F32x16& x) {
  // FPCR controls how the conversion rounds and whether fp16 has infinities (AHP): other settings
  // take the scalar path. Flushing to zero does not matter: FZ is for float32, and conversions
  // ignore FZ16.
  constexpr std::uint64_t rounding_mode = 3u << 22;
  constexpr std::uint64_t alternative_half = 1u << 26;
  std::uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  if ((control & (rounding_mode | alternative_half)) != 0) {
    float lanes[16];
    store(lanes, x);
    for (int i = 0; i < 16; ++i) p[i] = to_f16(lanes[i]);
    return;
  }
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    const float16x4_t halves = vcvt_f16_f32(x.v[i]);
    std::memcpy(static_cast<void*>(p + 4 * i), &halves, sizeof halves);
  }
}

KVTILT_INLINE F32x16 load_bf16(const BF16* p) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    uint16x4_t words;
    std::memcpy(&words, p + 4 * i, sizeof words);
    r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(words, 16));
  }
  return r;
}

KVTILT_INLINE F32x16 add(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE F32x16 sub(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE F32x16 mul(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE F32x16 multiply_add(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return r;
}

// Given a number and a quiet NaN, returns the number, as x86 does if the NaN is the first operand.
KVTILT_INLINE F32x16 min(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vminnmq_f32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vmaxnmq_f32(a.v[i], b.v[i]);
  return r;
}

/// Lane i holds 1 << i.
KVTILT_INLINE I32x16 lane_bits() {
  static constexpr std::uint32_t bits[16] = {
      1u << 0, 1u << 1, 1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
      1u << 8, 1u << 9, 1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15};
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vld1q_u32(bits + 4 * i);
  return r;
}

/// The mask of lanes that are all ones, not 0.
KVTILT_INLINE LaneMask mask_of(const I32x16& x) {
  const I32x16 bits = lane_bits();
  const uint32x4_t low = vorrq_u32(vandq_u32(x.v[0], bits.v[0]), vandq_u32(x.v[1], bits.v[1]));
  const uint32x4_t high = vorrq_u32(vandq_u32(x.v[2], bits.v[2]), vandq_u32(x.v[3], bits.v[3]));
  return static_cast<LaneMask>(vaddvq_u32(vorrq_u32(low, high)));
}

KVTILT_INLINE F32x16 keep(const F32x16& x, LaneMask mask, float other) {
  const uint32x4_t wanted = vdupq_n_u32(mask);
  const float32x4_t fill = vdupq_n_f32(other);
  const I32x16 bits = lane_bits();
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vbslq_f32(vtstq_u32(wanted, bits.v[i]), x.v[i], fill);
  return r;
}

KVTILT_INLINE F32x16 divide(const F32x16& a, const F32x16& b) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return r;
}

KVTILT_INLINE F32x16 magnitude(const F32x16& x) {
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vabsq_f32(x.v[i]);
  return r;
}

KVTILT_INLINE F32x16 max_magnitude(const F32x16& a, const F32x16& x) {
  return max(a, magnitude(x));
}

KVTILT_INLINE F32x16 with_sign(const F32x16& x, const F32x16& sign) {
  const uint32x4_t mask = vdupq_n_u32(0x80000000u);
  F32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vbslq_f32(mask, sign.v[i], x.v[i]);
  return r;
}

KVTILT_INLINE LaneMask less(const F32x16& a, const F32x16& b) {
  I32x16 r;
  KVTILT_UNROLL(4)
  for (int i = 0; i < 4; ++i) r.v[i] = vcltq_f32(a.v[i], b.v[i]);
  return mask_of(r);
}

KVTILT_INLINE F32x16 lane_indices() {
  static constexpr float indices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(indices);
}

/// Lane i is the sum of lanes i, i + 4, i + 8 and i + 12, halves first.
KVTILT_INLINE float32x4_t add_quarters(const F32x16& x) {
  return vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
}

KVTILT_INLINE float32x4_t max_quarters(const F32x16& x) {
  return vmaxnmq_f32(vmaxnmq_f32(x.v[0], x.v[2]), vmaxnmq_f32(x.v[1], x.v[3]));
}

KVTILT_INLINE Floats4 reduce_add(const F32x16 (&x)[4]) {
  float32x4_t a[4];
  KVTILT_UNROLL(4)
  for (int r = 0; r < 4; ++r) a[r] = add_quarters(x[r]);
  const float32x4_t ab = vaddq_f32(vcombine_f32(vget_low_f32(a[0]), vget_low_f32(a[1])),
                                   vcombine_f32(vget_high_f32(a[0]), vget_high_f32(a[1])));
  const float32x4_t cd = vaddq_f32(vcombine_f32(vget_low_f32(a[2]), vget_low_f32(a[3])),
                                   vcombine_f32(vget_high_f32(a[2]), vget_high_f32(a[3])));
  return vpaddq_f32(ab, cd);
}

KVTILT_INLINE Floats4 reduce_max(const F32x16 (&x)[4]) {
  const float32x4_t ab = vpmaxnmq_f32(max_quarters(x[0]), max_quarters(x[1]));
  const float32x4_t cd = vpmaxnmq_f32(max_quarters(x[2]), max_quarters(x[3]));
  return vpmaxnmq_f32(ab, cd);
}

#include <kvtilt/cpu/simd/neon_integers.inl>
