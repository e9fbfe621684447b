// SPDX-License-Identifier: MIT
/// Losses from measured divergence: one tensor at a time is stored in a probe format, and the KL
/// divergence of the model's predictions from those of the 16-bit model is measured.
///
/// To first order the divergences of different tensors add up. Each is quadratic in the error of
/// its tensor, so it scales with the squared error of the format. For small models every format of
/// every tensor can be measured; then nothing is scaled.
#pragma once

#include <kvtilt/plan/captured_losses.hpp>
#include <kvtilt/plan/error_law.hpp>
#include <kvtilt/plan/losses.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// One measurement: one tensor in a probe format and everything else in 16 bits.
struct Divergence {
  int layer = 0;
  int head = -1;  ///< -1: all kv heads of the layer
  Role tensor = Role::Keys;
  Format format;  ///< need not be among the choices
  double kl = 0;  ///< mean KL divergence from the 16-bit model, or any loss that adds up
};

namespace detail {

/// A measurement of a tensor: its squared error in the probe format, and its divergence.
struct ProbePoint {
  Format format;  ///< resolved
  double error;
  double kl;
};

/// Estimates the divergence at a squared error from points sorted by error (at least one): log-log
/// interpolation between two points, proportional to the error outside of them.
inline double scale_divergence(const std::vector<ProbePoint>& points, double error) {
  const auto proportional = [error](const ProbePoint& point) {
    return point.error > 0 ? point.kl * (error / point.error) : point.kl;
  };
  std::size_t above = 0;
  while (above < points.size() && points[above].error < error) ++above;
  if (above == 0) return proportional(points.front());
  if (above == points.size()) return proportional(points.back());
  const ProbePoint& low = points[above - 1];
  const ProbePoint& high = points[above];
  if (low.error <= 0 || low.kl <= 0 || high.kl <= 0) return proportional(high);
  const double share = std::log(error / low.error) / std::log(high.error / low.error);
  return low.kl * std::exp(share * std::log(high.kl / low.kl));
}

/// The measured divergence of a format (the last if there are several), else scale_divergence.
inline double divergence_of(const std::vector<ProbePoint>& points, const Format& format,
                            double error) {
  for (std::size_t i = points.size(); i-- > 0;)
    if (points[i].format == format) return points[i].kl;
  return scale_divergence(points, error);
}

/// Squared errors of one head of a tensor in resolved formats: measured on captured data if there
/// is any, else the law of Gaussian data.
inline Result<std::vector<double>> head_law(const CapturedLayer* captured, Role tensor, int head,
                                            const std::vector<Format>& formats, int page_tokens) {
  if (captured != nullptr)
    return captured_tensor_losses(*captured, tensor, head, formats, page_tokens);
  std::vector<double> errors;
  for (const Format& format : formats) errors.push_back(relative_error(format));
  return errors;
}

/// One tensor of a layer: its measured points, and its squared errors in all formats of interest.
class TensorDivergence {
 public:
  TensorDivergence(Role tensor, const std::vector<Format>& formats)
      : tensor_(tensor), formats_(formats) {}

  /// Evaluates the probes of this tensor and skips the others. The formats of the constructor must
  /// be resolved; those of the probes are resolved here, with the layer's shape and `page_tokens`.
  Status measure(std::span<const Divergence> probes, int layer, const LayerShape& shape,
                 const CapturedLayer* captured, int page_tokens) {
    const int dim = tensor_ == Role::Keys ? shape.key_dim : shape.value_dim;
    std::vector<Format> all = formats_;
    std::vector<const Divergence*> mine;
    for (const Divergence& probe : probes) {
      if (probe.layer != layer || probe.tensor != tensor_) continue;
      Result<Format> format = resolve_format(probe.format, "a probe", dim, page_tokens);
      if (!format) return std::move(format).take_status();
      all.push_back(*format);
      mine.push_back(&probe);
    }
    together_.assign(all.size(), 0.0);
    for (int head = 0; head < shape.kv_heads; ++head) {
      Result<std::vector<double>> law = head_law(captured, tensor_, head, all, page_tokens);
      if (!law) return std::move(law).take_status();
      for (std::size_t i = 0; i < all.size(); ++i) together_[i] += (*law)[i];
      heads_.push_back(*std::move(law));
    }
    points_.resize(heads_.size() + 1);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const int head = mine[i]->head;
      const std::size_t format = formats_.size() + i;
      const double error = head < 0 ? together_[format] : heads_[index(head)][format];
      points_[index(head < 0 ? shape.kv_heads : head)].push_back({all[format], error, mine[i]->kl});
    }
    for (std::vector<ProbePoint>& points : points_)
      std::stable_sort(points.begin(), points.end(),
                       [](const ProbePoint& a, const ProbePoint& b) { return a.error < b.error; });
    return {};
  }

  /// Losses of all formats for all heads together; empty if no probe covered all heads.
  [[nodiscard]] std::vector<double> layer_losses() const {
    return losses(points_.back(), together_, nullptr);
  }

  /// Losses of all formats for one head: from its own probes, or, if it has none, its share of the
  /// losses of the whole layer, in proportion to its squared error.
  [[nodiscard]] std::vector<double> head_losses(int head) const {
    const std::vector<double>& law = heads_[index(head)];
    if (!points_[index(head)].empty()) return losses(points_[index(head)], law, nullptr);
    return losses(points_.back(), together_, &law);
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }

  [[nodiscard]] std::vector<double> losses(const std::vector<ProbePoint>& points,
                                           const std::vector<double>& errors,
                                           const std::vector<double>* part) const {
    std::vector<double> result;
    if (points.empty()) return result;
    for (std::size_t i = 0; i < formats_.size(); ++i) {
      const double share = part == nullptr ? 1.0 : errors[i] > 0 ? (*part)[i] / errors[i] : 0.0;
      result.push_back(share * divergence_of(points, formats_[i], errors[i]));
    }
    return result;
  }

  Role tensor_;
  const std::vector<Format>& formats_;
  std::vector<double> together_;                 ///< errors in formats, then probes; all heads
  std::vector<std::vector<double>> heads_;       ///< the same, per head
  std::vector<std::vector<ProbePoint>> points_;  ///< per head, then of all heads
};

inline Status check_probes(std::span<const Divergence> probes, const CacheShape& shape) {
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const Divergence& probe = probes[i];
    const int layers = static_cast<int>(shape.layers.size());
    if (probe.layer < 0 || probe.layer >= layers || probe.head < -1 ||
        probe.head >= shape.layers[static_cast<std::size_t>(probe.layer)].kv_heads)
      return Status::error(ErrorCode::InvalidArgument,
                           "divergence %zu: there is no layer %d with a kv head %d", i, probe.layer,
                           probe.head);
    if (probe.tensor == Role::Values &&
        shape.layers[static_cast<std::size_t>(probe.layer)].values_in_keys)
      return Status::error(ErrorCode::InvalidArgument,
                           "divergence %zu is of values, but those of layer %d are in its keys", i,
                           probe.layer);
    if (!is_loss(probe.kl))
      return Status::error(ErrorCode::InvalidValue, "divergence %zu is %g, must be 0 or more", i,
                           probe.kl);
  }
  return {};
}

}  // namespace detail

/// Computes losses in the unit of the divergences. A format that was measured keeps its measured
/// divergence. Others are scaled by their squared error: measured on captured data if it is given
/// (so that outlier channels of keys count), else by the law of Gaussian data.
///
/// probes    for the keys and for the values of every layer (for the keys alone where values are in
///           them) at least one of all heads, or, for losses per head, one of each head
/// captured  empty, or one per layer
/// Fails     InvalidArgument if counts disagree or a tensor has no probe, naming it; InvalidValue
///           for divergences below 0
/// Cost      with captured data that of losses_from_statistics, else negligible
inline Result<ModelLosses> losses_from_divergence(const CacheShape& shape, int page_tokens,
                                                  const FormatChoices& choices,
                                                  std::span<const Divergence> probes,
                                                  std::span<const CapturedLayer> captured = {},
                                                  RecipePer per = RecipePer::Layer) {
  KVTILT_RETURN_IF_ERROR(detail::check_probes(probes, shape));
  if (!captured.empty() && captured.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "captured %zu layers for a shape of %zu",
                         captured.size(), shape.layers.size());
  const auto fill = [&](std::size_t layer, Role tensor, const std::vector<Format>& formats,
                        std::vector<HeadLosses>& entries) -> Status {
    const CapturedLayer* data = captured.empty() ? nullptr : &captured[layer];
    if (data != nullptr) KVTILT_RETURN_IF_ERROR(detail::check_captured(*data, shape.layers[layer]));
    detail::TensorDivergence measured(tensor, formats);
    KVTILT_RETURN_IF_ERROR(
        measured.measure(probes, static_cast<int>(layer), shape.layers[layer], data, page_tokens));
    for (std::size_t entry = 0; entry < entries.size(); ++entry) {
      entries[entry].of(tensor) = per == RecipePer::Head
                                      ? measured.head_losses(static_cast<int>(entry))
                                      : measured.layer_losses();
      if (!entries[entry].of(tensor).empty()) continue;
      if (per == RecipePer::Layer)
        return Status::error(ErrorCode::InvalidArgument,
                             "no divergence was measured with all heads in a probe format");
      return Status::error(ErrorCode::InvalidArgument,
                           "no divergence was measured with head %zu in a probe format", entry);
    }
    return {};
  };
  return detail::make_losses(shape, page_tokens, choices, per, fill);
}

}  // namespace kvtilt
