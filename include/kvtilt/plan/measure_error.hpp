// SPDX-License-Identifier: MIT
/// The error of a format on given data, quantized page by page as a cache does it.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/fit.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt {

/// What a squared error at (token, channel) counts: tokens[token] * channels[channel], where an
/// empty list stands for ones.
struct ErrorWeights {
  std::span<const double> tokens;
  std::span<const double> channels;
};

namespace detail {

/// Reads one page of one head as floats and as the fp16 numbers that are quantized.
struct PageRows {
  std::vector<float> floats;  ///< [tokens][dim]
  std::vector<F16> halves;    ///< [tokens][dim]

  Status read(const TensorView& data, int head, std::int64_t first, int tokens, float limit) {
    floats.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(data.dim));
    halves.resize(floats.size());
    std::size_t at = 0;
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < data.dim; ++channel, ++at) {
        const float x = element(data, first + token, head, channel);
        if ((bit_cast<std::uint32_t>(x) & 0x7fffffffu) > bit_cast<std::uint32_t>(limit))
          return Status::error(ErrorCode::InvalidValue,
                               "token %lld, head %d, channel %d is %g: the format holds magnitudes "
                               "up to %g",
                               static_cast<long long>(first + token), head, channel,
                               static_cast<double>(x), static_cast<double>(limit));
        floats[at] = x;
        halves[at] = to_f16(x);
      }
    return {};
  }

 private:
  static float element(const TensorView& data, std::int64_t token, int head, int channel) {
    switch (data.type) {
      case ElementType::F32:
        return data.row<float>(token, head)[channel];
      case ElementType::F16:
        return to_float(data.row<F16>(token, head)[channel]);
      case ElementType::BF16:
        break;
    }
    return to_float(data.row<BF16>(token, head)[channel]);
  }
};

/// Weighted squared error of `count` elements from `at` on, `stride` apart.
struct GroupError {
  const PageRows& rows;
  const Format& format;

  template <class Weight>
  [[nodiscard]] double operator()(std::size_t at, int count, std::size_t stride,
                                  const Weight& weight) const {
    const Affine affine =
        fit({&rows.halves[at], count, static_cast<std::int64_t>(stride)}, format.bits, format.rule);
    const float inverse = reciprocal(affine.scale);
    double sum = 0;
    for (int i = 0; i < count; ++i) {
      const std::size_t place = at + static_cast<std::size_t>(i) * stride;
      const int code = encode(rows.halves[place], affine, inverse, format.bits, format.rule);
      const double error = static_cast<double>(rows.floats[place]) - decode(code, affine);
      sum += weight(i) * error * error;
    }
    return sum;
  }
};

}  // namespace detail

/// Weighted sum of squared errors of one head of `data` in a resolved format. Only whole pages
/// count, the first starting at token 0; a cache keeps the rest in 16 bits. 16-bit formats err by
/// the rounding to fp16.
///
/// weights  tokens: [data.tokens] or empty, channels: [data.dim] or empty
/// Fails    InvalidArgument where counts disagree or there is no whole page, InvalidValue at a NaN,
///          an infinity or a magnitude that the format cannot hold
/// Cost     3 ns per element for min-max, up to 15 for min-mse: the scalar specification
inline Result<double> measure_error(const TensorView& data, int head, const Format& format,
                                    int page_tokens, const ErrorWeights& weights = {}) {
  if (!is_page_size(page_tokens) || data.tokens < page_tokens || head < 0 || head >= data.heads)
    return Status::error(ErrorCode::InvalidArgument,
                         "head %d of %d, %lld tokens in pages of %d: there must be at least one "
                         "whole page of 32, 64 or 128",
                         head, data.heads, static_cast<long long>(data.tokens), page_tokens);
  if ((!weights.tokens.empty() && weights.tokens.size() < static_cast<std::size_t>(data.tokens)) ||
      (!weights.channels.empty() && weights.channels.size() != static_cast<std::size_t>(data.dim)))
    return Status::error(ErrorCode::InvalidArgument,
                         "weights of %zu tokens and %zu channels for %lld tokens of %d channels",
                         weights.tokens.size(), weights.channels.size(),
                         static_cast<long long>(data.tokens), data.dim);
  Result<Format> resolved = resolve_format(format, "data", data.dim, page_tokens);
  if (!resolved) return std::move(resolved).take_status();

  const std::size_t dim = static_cast<std::size_t>(data.dim);
  const auto channel_weight = [&](std::size_t channel) {
    return weights.channels.empty() ? 1.0 : weights.channels[channel];
  };
  const float limit = largest_magnitude(*resolved);
  detail::PageRows rows;
  const detail::GroupError group_error{rows, *resolved};
  double sum = 0;
  for (std::int64_t first = 0; first + page_tokens <= data.tokens; first += page_tokens) {
    KVTILT_RETURN_IF_ERROR(rows.read(data, head, first, page_tokens, limit));
    const auto token_weight = [&](std::size_t token) {
      return weights.tokens.empty() ? 1.0 : weights.tokens[static_cast<std::size_t>(first) + token];
    };
    if (!resolved->quantized()) {
      for (std::size_t at = 0; at < rows.floats.size(); ++at) {
        const double error =
            static_cast<double>(rows.floats[at]) - static_cast<double>(to_float(rows.halves[at]));
        sum += token_weight(at / dim) * channel_weight(at % dim) * error * error;
      }
    } else if (resolved->granularity == Granularity::PerChannel) {
      for (int token = 0; token < page_tokens; token += resolved->group)
        for (std::size_t channel = 0; channel < dim; ++channel) {
          const std::size_t start = static_cast<std::size_t>(token);
          sum += channel_weight(channel) *
                 group_error(start * dim + channel, resolved->group, dim, [&](int i) {
                   return token_weight(start + static_cast<std::size_t>(i));
                 });
        }
    } else {
      for (std::size_t token = 0; token < static_cast<std::size_t>(page_tokens); ++token)
        for (int channel = 0; channel < data.dim; channel += resolved->group) {
          const int rest = data.dim - channel;
          const std::size_t start = static_cast<std::size_t>(channel);
          sum += token_weight(token) *
                 group_error(
                     token * dim + start, rest < resolved->group ? rest : resolved->group, 1,
                     [&](int i) { return channel_weight(start + static_cast<std::size_t>(i)); });
        }
    }
  }
  return sum;
}

}  // namespace kvtilt
