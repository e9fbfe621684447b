// SPDX-License-Identifier: MIT
/// Compares what a layer's weight norms predict about its keys and values with what was measured.
#pragma once

#include <kvtilt/plan/losses.hpp>
#include <kvtilt/plan/norm_losses.hpp>
#include <kvtilt/plan/weight_norms.hpp>

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace kvtilt {

/// A gap is the number of bits that keys need beyond values for equal errors, log2(|K| / |V|); 0 if
/// a norm is 0, that is, unknown. (Appendix B.4 of arXiv 2502.15075v3 prints the ratio upside
/// down.)
struct LayerReport {
  bool theorem_holds = false;   ///< theorem 1: |W_K| > |W_V|, Frobenius
  bool spectral_holds = false;  ///< the same for the largest singular values
  double frobenius_gap = 0;
  double spectral_gap = 0;
  bool key_norm = false;               ///< keys pass QK-norm: W_K does not set their scale
  std::optional<double> gain_gap;      ///< Frobenius, keys from the gains of QK-norm
  std::optional<double> measured_gap;  ///< from losses of keys and values at the same width
  bool contradicted = false;  ///< the Frobenius gap and the measured one have opposite signs, or
                              ///< are more than a bit apart
};

namespace detail {

inline double gap(double keys, double values) {
  return keys > 0 && values > 0 ? std::log2(keys / values) : 0;
}

}  // namespace detail

/// Bits that keys need beyond values for equal losses: half the log2 of the ratio of their losses
/// in the first format of `bits` bits in each list of choices. Nothing if there is no such format
/// or a loss is 0.
inline std::optional<double> measured_gap(std::span<const HeadLosses> entries,
                                          const FormatChoices& choices, int bits) {
  const auto find = [bits](const std::vector<Format>& formats) {
    std::size_t i = 0;
    while (i < formats.size() && formats[i].bits != bits) ++i;
    return i;
  };
  const std::size_t key = find(choices.keys);
  const std::size_t value = find(choices.values);
  double keys = 0;
  double values = 0;
  for (const HeadLosses& entry : entries) {
    if (key >= entry.keys.size() || value >= entry.values.size()) return std::nullopt;
    keys += entry.keys[key];
    values += entry.values[value];
  }
  if (!(keys > 0) || !(values > 0)) return std::nullopt;
  return 0.5 * std::log2(keys / values);
}

/// Reports on one layer; `measured` is the result of measured_gap for it, if any. gain_gap stays
/// empty if the number of gains does not fit the shape.
inline LayerReport layer_report(const LayerNorms& layer, const LayerShape& shape,
                                std::optional<double> measured = {}) {
  LayerReport report;
  report.theorem_holds = layer.keys.frobenius > layer.values.frobenius;
  report.spectral_holds = layer.keys.spectral > layer.values.spectral;
  report.frobenius_gap = detail::gap(layer.keys.frobenius, layer.values.frobenius);
  report.spectral_gap = detail::gap(layer.keys.spectral, layer.values.spectral);
  report.key_norm = layer.key_norm;
  if (layer.key_norm && !layer.key_gains.empty() && detail::gains_fit(layer.key_gains, shape)) {
    const double keys = detail::squared_scale(layer, shape, Role::Keys, Norm::Frobenius, -1);
    report.gain_gap = detail::gap(std::sqrt(keys), layer.values.frobenius);
  }
  report.measured_gap = measured;
  if (measured) {
    const double claimed = report.gain_gap.value_or(report.frobenius_gap);
    report.contradicted = (claimed < 0) != (*measured < 0) || std::abs(claimed - *measured) > 1;
  }
  return report;
}

}  // namespace kvtilt
