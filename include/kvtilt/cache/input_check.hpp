// SPDX-License-Identifier: MIT
/// Finds elements that a cache cannot store (NaN, infinity, too large), before anything is stored.
#pragma once

#include <kvtilt/core/tensor_view.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// An element that cannot be stored, and where it is in its tensor.
struct BadElement {
  std::int64_t token;
  int head;
  int channel;
  float value;
};

namespace detail {

/// Index of the first of `count` elements whose magnitude bits exceed `limit` (those of NaN and
/// infinity do), or -1. Compares integers, as -ffast-math lets compilers assume that there is no NaN.
template <class Bits, class T>
int first_above(const T* row, int count, Bits mask, Bits limit) {
  bool any = false;
  for (int i = 0; i < count; ++i) any |= (bit_cast<Bits>(row[i]) & mask) > limit;
  for (int i = 0; any && i < count; ++i)
    if ((bit_cast<Bits>(row[i]) & mask) > limit) return i;
  return -1;
}

inline int first_above(const TensorView& tensor, std::int64_t token, int head, float limit) {
  constexpr std::uint16_t half_mask = 0x7fff;
  switch (tensor.type) {
    case ElementType::F32:
      return first_above<std::uint32_t>(tensor.row<float>(token, head), tensor.dim, 0x7fffffffu,
                                        bit_cast<std::uint32_t>(limit));
    case ElementType::F16:
      return first_above<std::uint16_t>(tensor.row<F16>(token, head), tensor.dim, half_mask,
                                        to_f16(limit).bits);
    case ElementType::BF16:  // the largest bf16 not above the limit: truncate
      return first_above<std::uint16_t>(
          tensor.row<BF16>(token, head), tensor.dim, half_mask,
          static_cast<std::uint16_t>(bit_cast<std::uint32_t>(limit) >> 16));
  }
  return -1;
}

}  // namespace detail

/// Element (token, head, channel) as a float.
inline float element(const TensorView& tensor, std::int64_t token, int head, int channel) {
  switch (tensor.type) {
    case ElementType::F32:
      return tensor.row<float>(token, head)[channel];
    case ElementType::F16:
      return to_float(tensor.row<F16>(token, head)[channel]);
    case ElementType::BF16:
      return to_float(tensor.row<BF16>(token, head)[channel]);
  }
  return 0.0f;
}

/// Searches one head for NaN, infinity and magnitudes above `limit` (fp16-representable). If there is
/// one, returns true and describes the first in `bad`.
inline bool find_bad_element(const TensorView& tensor, int head, float limit, BadElement& bad) {
  for (std::int64_t token = 0; token < tensor.tokens; ++token)
    if (const int channel = detail::first_above(tensor, token, head, limit); channel >= 0) {
      bad = {token, head, channel, element(tensor, token, head, channel)};
      return true;
    }
  return false;
}

}  // namespace kvtilt
