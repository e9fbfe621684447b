// SPDX-License-Identifier: MIT
/// Combines attention over disjoint sets of keys, for split work, context parallelism, or CPU + GPU.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace kvtilt {

/// Merges `part` into `into`, both normalised outputs with their lse. An empty part (out = 0,
/// lse = -infinity) is neutral. Commutative and associative up to rounding: merge in a fixed order
/// for reproducible bits. Fails with InvalidArgument if shapes differ or an lse is missing.
inline Status merge(const OutputView& into, const OutputView& part) {
  if (into.tokens != part.tokens || into.heads != part.heads || into.dim != part.dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "cannot merge [%lld, %d, %d] into [%lld, %d, %d]",
                         static_cast<long long>(part.tokens), part.heads, part.dim,
                         static_cast<long long>(into.tokens), into.heads, into.dim);
  if (into.lse == nullptr || part.lse == nullptr)
    return Status::error(ErrorCode::InvalidArgument, "both parts must carry their lse");
  for (std::int64_t token = 0; token < into.tokens; ++token)
    for (int head = 0; head < into.heads; ++head) {
      float& lse = into.lse[token * into.heads + head];
      const float other = part.lse[token * part.heads + head];
      if (is_minus_infinity(other)) continue;
      float* out = into.row(token, head);
      const float* more = part.row(token, head);
      if (is_minus_infinity(lse)) {
        std::copy_n(more, into.dim, out);
        lse = other;
        continue;
      }
      const float largest = lse > other ? lse : other;
      const float weight = std::exp(lse - largest);
      const float other_weight = std::exp(other - largest);
      const float sum = weight + other_weight;
      for (int channel = 0; channel < into.dim; ++channel)
        out[channel] = (out[channel] * weight + more[channel] * other_weight) / sum;
      lse = largest + std::log(sum);
    }
  return {};
}

}  // namespace kvtilt
