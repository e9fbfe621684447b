// SPDX-License-Identifier: MIT
/// Losses from keys, values and attention captured while a model ran: the squared error that a
/// format adds to the outputs of attention, to first order, quantized page by page as in a cache.
///
/// With p the probabilities of a query, o its output and e_t = scale * q . dk_t the error of a logit,
///
///     d o = sum_t p_t dv_t + sum_t p_t e_t (v_t - o)
///     E |d o|^2 = sum_t p_t^2 |dv_t|^2 + sum_t p_t^2 |v_t - o|^2 scale^2 sum_c q_c^2 dk_tc^2
///
/// for errors that are independent of each other. The weight of a value is therefore sum p_t^2. The
/// weight of a key is that times the squared distance of its value from the output (the softmax's
/// sensitivity) times the mean squares of the queries in each channel.
///
/// What counts is the change behind the output projection W_O. W_O amplifies the directions of real
/// values more than rounding errors, which have all directions: without W_O, the losses of keys
/// come out 3 to 20 times too small on a trained model. So key_attention should hold |W_O (v_t -
/// o)|^2, output_square the squared lengths of W_O's columns, and weight 1 / mean |W_O o|^2 of the
/// layer.
#pragma once

#include <kvtilt/plan/losses.hpp>
#include <kvtilt/plan/measure_error.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// The data of one layer from a captured run: its texts concatenated, each cut to whole pages.
struct CapturedLayer {
  int tokens = 0;
  int kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  std::vector<float> keys;    ///< [tokens, kv_heads, key_dim], as they enter the cache
  std::vector<float> values;  ///< [tokens, kv_heads, value_dim]

  /// [kv_heads][key_dim]: mean of q_c^2 over the queries that meet these keys. Empty: ones.
  std::vector<double> query_square;

  /// [kv_heads][tokens]: sum of p_t^2 over all queries of the kv head. Empty: ones.
  std::vector<double> attention;

  /// [kv_heads][tokens]: sum of p_t^2 |W_O (v_t - o)|^2 likewise. Empty: attention times the
  /// squared distance of the head's values from their mean (weighted by attention and
  /// output_square).
  std::vector<double> key_attention;

  double logit_scale = 0;  ///< 0: 1 / sqrt(key_dim)

  /// Factor of this layer's errors relative to other layers. Best known: 1 / mean |W_O o|^2 over
  /// tokens.
  double weight = 1;

  /// [kv_heads][value_dim]: squared length of the column of W_O that multiplies a channel, averaged
  /// over the query heads of the kv head. Empty: ones.
  std::vector<double> output_square;
};

namespace detail {

inline Status check_captured(const CapturedLayer& layer, const LayerShape& shape) {
  if (layer.kv_heads != shape.kv_heads || layer.key_dim != shape.key_dim ||
      layer.value_dim != shape.value_dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "captured %d kv heads of %d and %d channels, the shape has %d of %d and "
                         "%d",
                         layer.kv_heads, layer.key_dim, layer.value_dim, shape.kv_heads,
                         shape.key_dim, shape.value_dim);
  const std::size_t tokens = layer.tokens > 0 ? static_cast<std::size_t>(layer.tokens) : 0;
  const std::size_t heads = static_cast<std::size_t>(shape.kv_heads);
  const std::size_t key_dim = static_cast<std::size_t>(shape.key_dim);
  const std::size_t value_dim = static_cast<std::size_t>(shape.value_dim);
  const struct {
    const char* name;
    std::size_t size;
    std::size_t expected;
    bool optional;
  } lists[] = {{"keys", layer.keys.size(), tokens * heads * key_dim, false},
               {"values", layer.values.size(), tokens * heads * value_dim, false},
               {"query squares", layer.query_square.size(), heads * key_dim, true},
               {"output squares", layer.output_square.size(), heads * value_dim, true},
               {"attention weights", layer.attention.size(), heads * tokens, true},
               {"attention weights of keys", layer.key_attention.size(), heads * tokens, true}};
  for (const auto& list : lists)
    if (list.size != list.expected && !(list.optional && list.size == 0))
      return Status::error(ErrorCode::InvalidArgument,
                           "%zu %s, must be %zu for %zu tokens and %zu kv heads of %zu and %zu "
                           "channels",
                           list.size, list.name, list.expected, tokens, heads, key_dim, value_dim);
  for (const std::vector<double>* weights :
       {&layer.query_square, &layer.output_square, &layer.attention, &layer.key_attention})
    for (const double weight : *weights)
      if (!is_loss(weight))
        return Status::error(ErrorCode::InvalidValue, "%g cannot be a mean square or a weight",
                             weight);
  if (!is_loss(layer.weight) || !is_loss(layer.logit_scale))
    return Status::error(ErrorCode::InvalidValue, "weight %g, logit scale %g", layer.weight,
                         layer.logit_scale);
  return {};
}

/// One head's part of a [kv_heads][count] list; empty if the list is.
inline std::span<const double> head_part(const std::vector<double>& list, int head,
                                         std::size_t count) {
  if (list.empty()) return {};
  return std::span(list).subspan(static_cast<std::size_t>(head) * count, count);
}

/// Mean squared distance of a head's values from their mean, tokens weighted by attention and
/// channels by output_square.
inline double value_spread(const CapturedLayer& layer, int head) {
  const std::size_t tokens = static_cast<std::size_t>(layer.tokens);
  const std::size_t dim = static_cast<std::size_t>(layer.value_dim);
  const std::size_t stride = static_cast<std::size_t>(layer.kv_heads) * dim;
  const std::span<const double> attention = head_part(layer.attention, head, tokens);
  const std::span<const double> output = head_part(layer.output_square, head, dim);
  double spread = 0;
  for (std::size_t channel = 0; channel < dim; ++channel) {
    const std::size_t first = static_cast<std::size_t>(head) * dim + channel;
    double total = 0;
    double sum = 0;
    double squares = 0;
    for (std::size_t token = 0; token < tokens; ++token) {
      const double weight = attention.empty() ? 1.0 : attention[token];
      const double x = static_cast<double>(layer.values[first + token * stride]);
      total += weight;
      sum += weight * x;
      squares += weight * x * x;
    }
    const double variance = total > 0 ? squares / total - sum / total * (sum / total) : 0;
    spread += (output.empty() ? 1.0 : output[channel]) * std::max(variance, 0.0);
  }
  return spread;
}

/// Weights of one head of a captured tensor, and a factor common to all of them.
struct CapturedWeights {
  ErrorWeights weights;
  double factor;
};

inline CapturedWeights captured_weights(const CapturedLayer& layer, Role tensor, int head) {
  const std::size_t tokens = static_cast<std::size_t>(layer.tokens);
  const std::span<const double> attention = head_part(layer.attention, head, tokens);
  if (tensor == Role::Values) {
    const std::size_t dim = static_cast<std::size_t>(layer.value_dim);
    return {{attention, head_part(layer.output_square, head, dim)}, layer.weight};
  }
  const std::span<const double> queries =
      head_part(layer.query_square, head, static_cast<std::size_t>(layer.key_dim));
  const double scale2 =
      layer.logit_scale > 0 ? layer.logit_scale * layer.logit_scale : 1.0 / layer.key_dim;
  if (!layer.key_attention.empty())
    return {{head_part(layer.key_attention, head, tokens), queries}, layer.weight * scale2};
  return {{attention, queries}, layer.weight * scale2 * value_spread(layer, head)};
}

/// Losses of one head of a tensor in resolved formats.
inline Result<std::vector<double>> captured_tensor_losses(const CapturedLayer& layer, Role tensor,
                                                          int head,
                                                          const std::vector<Format>& formats,
                                                          int page_tokens) {
  const bool keys = tensor == Role::Keys;
  const TensorView data(keys ? layer.keys.data() : layer.values.data(), layer.tokens,
                        layer.kv_heads, keys ? layer.key_dim : layer.value_dim);
  const CapturedWeights weights = captured_weights(layer, tensor, head);
  std::vector<double> losses;
  for (const Format& format : formats) {
    Result<double> error = measure_error(data, head, format, page_tokens, weights.weights);
    if (!error) return std::move(error).take_status();
    losses.push_back(weights.factor * *error);
  }
  return losses;
}

}  // namespace detail

/// Computes the squared error of attention outputs that each format adds, per layer or per kv head.
///
/// captured  one per layer of the shape, each at least one page long
/// Fails     InvalidArgument if counts disagree, InvalidValue for invalid weights or elements,
///           naming the layer
/// Cost      that of measure_error for every element and format; nothing is shared between formats
inline Result<ModelLosses> losses_from_statistics(const CacheShape& shape, int page_tokens,
                                                  const FormatChoices& choices,
                                                  std::span<const CapturedLayer> captured,
                                                  RecipePer per = RecipePer::Layer) {
  if (captured.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "captured %zu layers for a shape of %zu",
                         captured.size(), shape.layers.size());
  const auto fill = [&](std::size_t layer, Role tensor, const std::vector<Format>& formats,
                        std::vector<HeadLosses>& entries) -> Status {
    KVTILT_RETURN_IF_ERROR(detail::check_values_apart(shape.layers[layer]));
    KVTILT_RETURN_IF_ERROR(detail::check_captured(captured[layer], shape.layers[layer]));
    for (HeadLosses& entry : entries) entry.of(tensor).assign(formats.size(), 0.0);
    for (int head = 0; head < captured[layer].kv_heads; ++head) {
      Result<std::vector<double>> one =
          detail::captured_tensor_losses(captured[layer], tensor, head, formats, page_tokens);
      if (!one) return std::move(one).take_status();
      const std::size_t entry = per == RecipePer::Head ? static_cast<std::size_t>(head) : 0;
      std::vector<double>& sums = entries[entry].of(tensor);
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += (*one)[i];
    }
    return {};
  };
  return detail::make_losses(shape, page_tokens, choices, per, fill);
}

}  // namespace kvtilt
