// SPDX-License-Identifier: MIT
/// The Hadamard transform H: it spreads a head's outlying channels over all of its channels, so that
/// values quantized per token lose less at the same width.
///
/// H is symmetric and its own inverse. Attention mixes values linearly, hence
///
///     values' = H values      before append() and attend_prefill()
///     outputs = H outputs'    behind attend() and attend_prefill()
///
/// leave a model as it is. So do transformed weights, which cost nothing later: with values = W_V x +
/// b_V and W_O behind attention, fold H into the columns of W_V, into b_V and into the rows of W_O,
/// head by head:
///
///     W_V' = H W_V      b_V' = H b_V      W_O' = W_O H
///
/// The cache knows nothing of it: say it in CacheOptions::fingerprint, so that a saved sequence continues
/// only in engines that transform alike.
///
/// Keys per channel have a scale and minimum per channel already; whether mixing channels of different
/// ranges helps them depends on the model. examples/llama/README.md has figures.
#pragma once

#include <kvtilt/core/row_check.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>

#include <cstdint>

namespace kvtilt {

namespace detail {

/// 1 / sqrt(n) of a power of two.
constexpr float inverse_root(int n) {
  float root = 1.0f;
  for (; n >= 4; n /= 4) root /= 2;
  return n == 2 ? root * 0.70710678f : root;
}

constexpr float widened(float x) { return x; }
constexpr float widened(F16 x) { return to_float(x); }
constexpr float widened(BF16 x) { return to_float(x); }
constexpr void round_into(float& element, float x) { element = x; }
constexpr void round_into(F16& element, float x) { element = to_f16(x); }
constexpr void round_into(BF16& element, float x) { element = to_bf16(x); }

/// A butterfly between the halves of a block, the results side by side. All stages are this one, which
/// compilers vectorize: it also rotates the bits of the index by one, and after log2(N) stages they are
/// back in place.
template <int N>
void transform_stage(const float* __restrict in, float* __restrict out) {
  for (int i = 0; i < N / 2; ++i) {
    const float a = in[i];
    const float b = in[i + N / 2];
    out[2 * i] = a + b;
    out[2 * i + 1] = a - b;
  }
}

template <int N, class Element>
void transform_block(Element* block) {
  float stages[2][N];
  for (int i = 0; i < N; ++i) stages[0][i] = widened(block[i]);
  int last = 0;
  for (int done = 1; done < N; done *= 2, last = 1 - last)
    transform_stage<N>(stages[last], stages[1 - last]);
  constexpr float scale = inverse_root(N);
  for (int i = 0; i < N; ++i) round_into(block[i], stages[last][i] * scale);
}

/// Blocks of the largest power of two that divides the head.
template <int N = 512, class Element>
void transform_head(Element* head, int dim) {
  if constexpr (N > 8) {
    if (dim % N != 0) return transform_head<N / 2>(head, dim);
  }
  for (int first = 0; first < dim; first += N) transform_block<N>(head + first);
}

template <class Element>
void transform_heads(const MutableTensorView& heads) {
  for (std::int64_t token = 0; token < heads.tokens; ++token)
    for (int head = 0; head < heads.heads; ++head)
      transform_head(reinterpret_cast<Element*>(heads.address(token, head)), heads.dim);
}

}  // namespace detail

/// Transforms every head in place: in blocks of the largest power of two that divides dim, so a head of
/// 96 channels is three blocks of 32.
///
/// heads  [tokens, heads, dim], any strides, f32, f16 or bf16; dim a multiple of 8, at most 576. Rows
///        of weights are tokens here: W_O [outputs, query_heads * dim] is [outputs, query_heads, dim]
/// Error  in float32 (log2(block) + 2) * 2^-24 of the head's Euclidean norm, which stays the same;
///        16-bit elements are rounded once to nearest even. A channel can grow sqrt(block)-fold
/// Fails  InvalidArgument (shape, type); nothing is written then
/// Cost   a head of 128: 0.2 us in float32, 0.3 us in bf16, 1 us in fp16; 4 KiB of stack
inline Status hadamard_transform(const MutableTensorView& heads) {
  if (heads.tokens < 0 || heads.heads < 0 || heads.dim < 8 || heads.dim > max_head_dim ||
      heads.dim % 8 != 0)
    return Status::error(
        ErrorCode::InvalidArgument,
        "cannot transform [%lld, %d, %d]; expected [n, n, a multiple of 8 up to %d]",
        static_cast<long long>(heads.tokens), heads.heads, heads.dim, max_head_dim);
  KVTILT_RETURN_IF_ERROR(detail::check_type(heads.type, "heads", unnumbered_layer));
  if (heads.data == nullptr && heads.tokens > 0 && heads.heads > 0)
    return Status::error(ErrorCode::InvalidArgument, "the heads to transform are null");
  switch (heads.type) {
    case ElementType::F32:
      detail::transform_heads<float>(heads);
      break;
    case ElementType::F16:
      detail::transform_heads<F16>(heads);
      break;
    case ElementType::BF16:
      detail::transform_heads<BF16>(heads);
      break;
  }
  return {};
}

}  // namespace kvtilt
