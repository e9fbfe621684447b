// SPDX-License-Identifier: MIT
// The primitives of the generic kernels on plain arrays. The comments here hold for every
// instruction set. Included inside a kernel namespace.

/// Sixteen floats: the lanes of a line.
struct F32x16 {
  float lane[16];
};

/// Sixteen 32-bit words: a line, each lane a quad of bytes.
struct I32x16 {
  std::uint32_t lane[16];
};

inline F32x16 broadcast(float x) {
  F32x16 r;
  for (float& lane : r.lane) lane = x;
  return r;
}

inline F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}

inline void store(float* p, const F32x16& x) { std::memcpy(p, x.lane, sizeof x.lane); }

/// Loads `count` (8 or 16) fp16 values; the other lanes are 0. Exact.
inline F32x16 load_f16(const F16* p, int count) {
  F32x16 r{};
  for (int i = 0; i < count; ++i) r.lane[i] = to_float(p[i]);
  return r;
}

/// Loads sixteen bf16 values. Exact.
inline F32x16 load_bf16(const BF16* p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = to_float(p[i]);
  return r;
}

/// Stores sixteen floats as fp16, nearest even; out-of-range lanes become infinity.
inline void store_f16(F16* p, const F32x16& x) {
  for (int i = 0; i < 16; ++i) p[i] = to_f16(x.lane[i]);
}

inline F32x16 add(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}

inline F32x16 sub(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}

inline F32x16 mul(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] * b.lane[i];
  return r;
}

/// a * b + c; fused or not.
inline F32x16 multiply_add(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
  return r;
}

inline F32x16 min(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return r;
}

inline F32x16 max(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return r;
}

/// x in the lanes whose bit is set; `other` elsewhere, even if x holds NaN there.
inline F32x16 keep(const F32x16& x, LaneMask mask, float other) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = (mask >> i & 1) != 0 ? x.lane[i] : other;
  return r;
}

inline F32x16 divide(const F32x16& a, const F32x16& b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[i] / b.lane[i];
  return r;
}

/// |x|.
inline F32x16 magnitude(const F32x16& x) {
  F32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = bit_cast<float>(bit_cast<std::uint32_t>(x.lane[i]) & 0x7fffffffu);
  return r;
}

/// The larger of a >= 0 and |x|.
inline F32x16 max_magnitude(const F32x16& a, const F32x16& x) { return max(a, magnitude(x)); }

/// x >= 0 with the sign of `sign`.
inline F32x16 with_sign(const F32x16& x, const F32x16& sign) {
  F32x16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = bit_cast<float>(bit_cast<std::uint32_t>(x.lane[i]) |
                                (bit_cast<std::uint32_t>(sign.lane[i]) & 0x80000000u));
  return r;
}

/// Lanes where a < b.
inline LaneMask less(const F32x16& a, const F32x16& b) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (a.lane[i] < b.lane[i] ? 1u : 0u) << i;
  return static_cast<LaneMask>(mask);
}

/// 0, 1, ..., 15.
inline F32x16 lane_indices() {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(i);
  return r;
}

/// The sum of the lanes of each of four rows. All instruction sets add in this order: halves first.
inline Floats4 reduce_add(const F32x16 (&x)[4]) {
  Floats4 sums;
  for (int r = 0; r < 4; ++r) {
    float a[8];
    for (int i = 0; i < 8; ++i) a[i] = x[r].lane[i] + x[r].lane[i + 8];
    for (int i = 0; i < 4; ++i) a[i] += a[i + 4];
    sums[r] = (a[0] + a[2]) + (a[1] + a[3]);
  }
  return sums;
}

/// The largest lane of each of four rows.
inline Floats4 reduce_max(const F32x16 (&x)[4]) {
  Floats4 largest;
  for (int r = 0; r < 4; ++r) {
    largest[r] = x[r].lane[0];
    for (int i = 1; i < 16; ++i) largest[r] = x[r].lane[i] > largest[r] ? x[r].lane[i] : largest[r];
  }
  return largest;
}

#include <kvtilt/cpu/simd/scalar_integers.inl>
