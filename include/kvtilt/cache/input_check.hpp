// SPDX-License-Identifier: MIT
/// Finds elements that a cache cannot store (NaN, infinity, too large), before anything is stored.
#pragma once

#include <kvtilt/core/tensor_view.hpp>

#include <cstdint>

namespace kvtilt {

/// An element that cannot be stored, and where it is in its tensor.
struct BadElement {
  std::int64_t token;
  int head;
  int channel;
  float value;
};

/// Searches one head for NaN, infinity and magnitudes above `limit` (fp16-representable). If there is
/// one, returns true and describes the first in `bad`.
inline bool find_bad_element(const TensorView& tensor, int head, float limit, BadElement& bad) {
  for (std::int64_t token = 0; token < tensor.tokens; ++token)
    for (int channel = 0; channel < tensor.dim; ++channel) {
      const float x = element(tensor, token, head, channel);
      // Compares integers, as -ffast-math lets compilers assume that there is no NaN.
      if ((bit_cast<std::uint32_t>(x) & 0x7fffffffu) <= bit_cast<std::uint32_t>(limit)) continue;
      bad = {token, head, channel, x};
      return true;
    }
  return false;
}

}  // namespace kvtilt
