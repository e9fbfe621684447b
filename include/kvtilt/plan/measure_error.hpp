// SPDX-License-Identifier: MIT
/// Measures the error of a format on given data, quantized page by page as in a cache.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/fit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// Weights of squared errors: tokens[token] * channels[channel] at (token, channel); an empty list
/// stands for ones.
struct ErrorWeights {
  std::span<const double> tokens;
  std::span<const double> channels;
};

namespace detail {

/// One page of one head, as floats and as the fp16 numbers that are quantized: [tokens][dim].
struct PageRows {
  std::vector<float> floats;
  std::vector<F16> halves;

  /// Fails at the first element that is not finite or beyond `limit`.
  Status read(const TensorView& data, int head, std::int64_t first, int tokens, float limit) {
    floats.clear();
    halves.clear();
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < data.dim; ++channel) {
        const float x = element(data, first + token, head, channel);
        if ((bit_cast<std::uint32_t>(x) & 0x7fffffffu) > bit_cast<std::uint32_t>(limit))
          return Status::error(ErrorCode::InvalidValue,
                               "token %lld, head %d, channel %d is %g: the format holds magnitudes "
                               "up to %g",
                               static_cast<long long>(first + token), head, channel,
                               static_cast<double>(x), static_cast<double>(limit));
        floats.push_back(x);
        halves.push_back(to_f16(x));
      }
    return {};
  }
};

/// A group: elements of a page that lie `stride` apart, and the weights of their squared errors.
struct PageGroup {
  std::size_t first;
  std::size_t stride;
  std::span<const double> weights;  ///< one per element
};

/// Weighted squared error of a group in a resolved format.
inline double group_error(const PageRows& rows, const PageGroup& group, const Format& format) {
  Affine affine;
  float inverse = 0;
  if (format.quantized()) {
    affine = fit({&rows.halves[group.first], static_cast<int>(group.weights.size()),
                  static_cast<std::int64_t>(group.stride)},
                 format.bits, format.rule);
    inverse = reciprocal(affine.scale);
  }
  double sum = 0;
  for (std::size_t i = 0; i < group.weights.size(); ++i) {
    const std::size_t at = group.first + i * group.stride;
    const F16 half = rows.halves[at];
    const float stored =
        format.quantized() ? decode(encode(half, affine, inverse, format.bits, format.rule), affine)
                           : to_float(half);
    const double error = static_cast<double>(rows.floats[at]) - static_cast<double>(stored);
    sum += group.weights[i] * error * error;
  }
  return sum;
}

/// Weighted squared error of a page; `tokens` and `channels` are the weights.
inline double page_error(const PageRows& rows, std::span<const double> tokens,
                         std::span<const double> channels, const Format& format) {
  const bool per_channel = format.granularity == Granularity::PerChannel;
  const std::span<const double> along = per_channel ? tokens : channels;
  const std::span<const double> across = per_channel ? channels : tokens;
  const std::size_t stride = per_channel ? channels.size() : 1;
  const std::size_t entry_stride = per_channel ? 1 : channels.size();
  const std::size_t group =
      format.quantized() ? static_cast<std::size_t>(format.group) : along.size();
  double sum = 0;
  for (std::size_t first = 0; first < along.size(); first += group) {
    const std::size_t count = std::min(group, along.size() - first);
    for (std::size_t entry = 0; entry < across.size(); ++entry) {
      const PageGroup elements{first * stride + entry * entry_stride, stride,
                               along.subspan(first, count)};
      sum += across[entry] * group_error(rows, elements, format);
    }
  }
  return sum;
}

}  // namespace detail

/// Weighted sum of squared errors of one head of `data` in a format. Only whole pages count, the
/// first starting at token 0; a cache keeps the remaining tokens in 16 bits. The error of a 16-bit
/// format is that of rounding to fp16.
///
/// weights  tokens: [data.tokens] or empty, channels: [data.dim] or empty
/// Fails    InvalidArgument where counts disagree or there is no whole page, InvalidValue at a NaN,
///          an infinity or a magnitude that the format cannot hold
/// Cost     the scalar specification: 18 ns per element for min-max, 25 at one bit, 37 for min-mse
inline Result<double> measure_error(const TensorView& data, int head, const Format& format,
                                    int page_tokens, const ErrorWeights& weights = {}) {
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  if (data.tokens < page_tokens || head < 0 || head >= data.heads)
    return Status::error(ErrorCode::InvalidArgument,
                         "head %d of %d, %lld tokens in pages of %d: there must be at least one "
                         "whole page",
                         head, data.heads, static_cast<long long>(data.tokens), page_tokens);
  const std::size_t tokens = static_cast<std::size_t>(data.tokens);
  const std::size_t dim = data.dim > 0 ? static_cast<std::size_t>(data.dim) : 0;
  if ((!weights.tokens.empty() && weights.tokens.size() != tokens) ||
      (!weights.channels.empty() && weights.channels.size() != dim))
    return Status::error(ErrorCode::InvalidArgument,
                         "weights of %zu tokens and %zu channels for %zu tokens of %zu channels",
                         weights.tokens.size(), weights.channels.size(), tokens, dim);
  Result<Format> resolved = resolve_format(format, "data", data.dim, page_tokens);
  if (!resolved) return std::move(resolved).take_status();

  const std::vector<double> ones(std::max(tokens, dim), 1.0);
  const std::span<const double> token_weights =
      weights.tokens.empty() ? std::span(ones).first(tokens) : weights.tokens;
  const std::span<const double> channel_weights =
      weights.channels.empty() ? std::span(ones).first(dim) : weights.channels;
  detail::PageRows rows;
  double sum = 0;
  for (std::int64_t first = 0; first + page_tokens <= data.tokens; first += page_tokens) {
    KVTILT_RETURN_IF_ERROR(rows.read(data, head, first, page_tokens, largest_magnitude(*resolved)));
    sum += detail::page_error(rows,
                              token_weights.subspan(static_cast<std::size_t>(first),
                                                    static_cast<std::size_t>(page_tokens)),
                              channel_weights, *resolved);
  }
  return sum;
}

}  // namespace kvtilt
