// SPDX-License-Identifier: MIT
/// Losses from weight norms alone, without running the model: loss = scale^2 * error law.
#pragma once

#include <kvtilt/plan/error_law.hpp>
#include <kvtilt/plan/losses.hpp>
#include <kvtilt/plan/weight_norms.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt {

enum class Norm : std::uint8_t { Frobenius, Spectral };

constexpr const char* to_string(Norm norm) {
  return norm == Norm::Frobenius ? "frobenius" : "spectral";
}

namespace detail {

inline double norm_of(const TensorNorms& norms, Norm norm) {
  return norm == Norm::Frobenius ? norms.frobenius : norms.spectral;
}

inline const std::vector<double>& head_norms(const TensorNorms& norms, Norm norm) {
  return norm == Norm::Frobenius ? norms.head_frobenius : norms.head_spectral;
}

/// Whether there is one gain per key channel: of one head, shared by all, or of each kv head.
inline bool gains_fit(const std::vector<float>& gains, const LayerShape& shape) {
  const std::size_t dim = static_cast<std::size_t>(shape.key_dim);
  return gains.size() == dim || gains.size() == static_cast<std::size_t>(shape.kv_heads) * dim;
}

/// Gains of one head; `gains` must pass gains_fit.
inline std::span<const float> head_gains(const std::vector<float>& gains, int head, int key_dim) {
  const std::size_t dim = static_cast<std::size_t>(key_dim);
  if (gains.size() == dim) return gains;
  return std::span(gains).subspan(static_cast<std::size_t>(head) * dim, dim);
}

}  // namespace detail

/// The norm that W_K would need to give keys the size that QK-norm gives them: behind QK-norm the
/// rms of channel c is |gain_c| whatever the weights are. Frobenius: sqrt(sum of gain^2), which is
/// what weights give on inputs of unit rms. Spectral: the length of the longest key, at most max
/// |gain| * sqrt(dim), divided by the length of a unit-rms input, sqrt(hidden); the Frobenius value
/// if `hidden` is unknown (0).
inline double key_gain_norm(std::span<const float> gains, std::int64_t hidden, Norm norm) {
  double sum = 0;
  double largest = 0;
  for (const float gain : gains) {
    const double size = std::abs(static_cast<double>(gain));
    sum += size * size;
    largest = size > largest ? size : largest;
  }
  if (norm == Norm::Frobenius || hidden <= 0) return std::sqrt(sum);
  return largest * std::sqrt(static_cast<double>(gains.size()) / static_cast<double>(hidden));
}

namespace detail {

/// The squared norm that sets the scale of the keys or values of one head, or of all (head < 0).
inline double squared_scale(const LayerNorms& layer, const LayerShape& shape, Role tensor,
                            Norm norm, int head) {
  const TensorNorms& norms = tensor == Role::Keys ? layer.keys : layer.values;
  if (tensor == Role::Keys && layer.key_norm && !layer.key_gains.empty()) {
    double sum = 0;
    double largest = 0;
    for (int h = head < 0 ? 0 : head; h < (head < 0 ? shape.kv_heads : head + 1); ++h) {
      const double size =
          key_gain_norm(head_gains(layer.key_gains, h, shape.key_dim), norms.hidden, norm);
      sum += size * size;
      largest = std::max(largest, size * size);
    }
    return norm == Norm::Spectral && norms.hidden > 0 ? largest : sum;
  }
  const double size =
      head < 0 ? norm_of(norms, norm) : head_norms(norms, norm)[static_cast<std::size_t>(head)];
  return size * size;
}

/// What a bias adds to the squared scale of groups that it varies within, of one head or of all
/// (head < 0). The spectral norm counts per unit of the input's length, sqrt(hidden); a bias
/// counts whatever the input is.
inline double squared_bias(const LayerNorms& layer, const LayerShape& shape, Role tensor, Norm norm,
                           int head) {
  // Behind QK-norm the gains set the whole scale, that of the bias included.
  if (tensor == Role::Keys && layer.key_norm && !layer.key_gains.empty()) return 0;
  const TensorNorms& norms = tensor == Role::Keys ? layer.keys : layer.values;
  const bool own = head >= 0 && !norms.head_bias.empty();
  const double size = own ? norms.head_bias[static_cast<std::size_t>(head)] : norms.bias;
  double square = size * size;
  if (head >= 0 && !own) square /= shape.kv_heads;
  if (norm == Norm::Spectral && norms.hidden > 0) square /= static_cast<double>(norms.hidden);
  return square;
}

/// Upper limit of a norm, so that squares, products and sums of norms stay finite.
inline constexpr double largest_norm = 1e140;

inline Status check_norms(const LayerNorms& layer, const LayerShape& shape, Role tensor, Norm norm,
                          RecipePer per) {
  const TensorNorms& norms = tensor == Role::Keys ? layer.keys : layer.values;
  const std::size_t heads = static_cast<std::size_t>(shape.kv_heads);
  std::vector<double> used{norm_of(norms, norm)};
  if (per == RecipePer::Head) {
    used = head_norms(norms, norm);
    if (used.size() != heads)
      return Status::error(ErrorCode::InvalidArgument, "%s norms of %zu heads for %zu",
                           to_string(norm), used.size(), heads);
  }
  if (!norms.head_bias.empty() && norms.head_bias.size() != heads)
    return Status::error(ErrorCode::InvalidArgument, "biases of %zu heads for %zu",
                         norms.head_bias.size(), heads);
  for (const double size : used)
    if (!is_loss(size) || size > largest_norm)
      return Status::error(ErrorCode::InvalidValue, "%g is no %s norm", size, to_string(norm));
  std::vector<double> biases = norms.head_bias;
  biases.push_back(norms.bias);
  for (const double size : biases)
    if (!is_loss(size) || size > largest_norm)
      return Status::error(ErrorCode::InvalidValue, "%g is no norm of a bias", size);
  if (!layer.key_gains.empty() && !gains_fit(layer.key_gains, shape))
    return Status::error(ErrorCode::InvalidArgument,
                         "%zu gains of the key norm for %zu heads of %d channels",
                         layer.key_gains.size(), heads, shape.key_dim);
  for (const float gain : layer.key_gains)
    if (!is_finite(static_cast<double>(gain)))
      return Status::error(ErrorCode::InvalidValue, "a gain of the key norm is not finite");
  return {};
}

}  // namespace detail

/// Computes loss = norm^2 * relative_error(format): the squared error that weights of this norm
/// lead to on inputs of unit rms, over a whole layer or one head. Per token, and in 16 bits, a bias
/// counts too: norm^2 + bias^2. Keys behind a QK-norm take their scale from its gains, if these are
/// given. The gain of the RMSNorm in front of the projection, which scales the weights' columns, is
/// ignored.
///
/// Norms say nothing about what an error does to the output: at 1 and 2 bits they ask for too
/// little. Give BitBudget floors (3 for keys, 2 for values), or measure.
///
/// norms  one per layer of the shape
/// Source arXiv 2502.15075v3, appendix B.4, with the law measured here instead of 4^-bits
inline Result<ModelLosses> losses_from_norms(const CacheShape& shape, int page_tokens,
                                             const FormatChoices& choices,
                                             std::span<const LayerNorms> norms, Norm norm,
                                             RecipePer per = RecipePer::Layer) {
  if (norms.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "norms of %zu layers for a shape of %zu",
                         norms.size(), shape.layers.size());
  const auto fill = [&](std::size_t layer, Role tensor, const std::vector<Format>& formats,
                        std::vector<HeadLosses>& entries) -> Status {
    const LayerShape& layer_shape = shape.layers[layer];
    KVTILT_RETURN_IF_ERROR(detail::check_values_apart(layer_shape));
    KVTILT_RETURN_IF_ERROR(detail::check_norms(norms[layer], layer_shape, tensor, norm, per));
    for (std::size_t entry = 0; entry < entries.size(); ++entry) {
      const int head = per == RecipePer::Head ? static_cast<int>(entry) : -1;
      const double scale = detail::squared_scale(norms[layer], layer_shape, tensor, norm, head);
      const double bias = detail::squared_bias(norms[layer], layer_shape, tensor, norm, head);
      for (const Format& format : formats) {
        const bool per_token = format.granularity == Granularity::PerToken;  // 16 bits are, too
        entries[entry].of(tensor).push_back((per_token ? scale + bias : scale) *
                                            relative_error(format));
      }
    }
    return {};
  };
  return detail::make_losses(shape, page_tokens, choices, per, fill);
}

}  // namespace kvtilt
