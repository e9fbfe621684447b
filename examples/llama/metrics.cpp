// SPDX-License-Identifier: MIT
#include "metrics.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace llama {
namespace {

using LogitArray = Eigen::Map<const Eigen::ArrayXf>;

LogitArray as_array(std::span<const float> numbers) {
  return {numbers.data(), static_cast<Eigen::Index>(numbers.size())};
}

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  const auto x = as_array(logits).cast<double>();
  const double largest = x.maxCoeff<Eigen::PropagateNaN>();
  return largest + std::log((x - largest).exp().sum());
}

int argmax(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> logits, double lse) {
  const auto log_p = as_array(reference).cast<double>() - reference_lse;
  const auto log_q = as_array(logits).cast<double>() - lse;
  const double divergence = (log_p.exp() * (log_p - log_q)).sum();
  return divergence < 0 ? 0 : divergence;
}

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  // The small number keeps rounding errors (0.99 * 300, say) from reaching the next rank.
  const double rank = std::ceil(share * static_cast<double>(values.size()) - 1e-6);
  const auto index = static_cast<std::size_t>(std::max(rank, 1.0)) - 1;
  const auto place =
      values.begin() + static_cast<std::ptrdiff_t>(std::min(index, values.size() - 1));
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

std::optional<double> ratio_standard_error(std::span<const double> y, std::span<const double> x) {
  const double sum_x = std::accumulate(x.begin(), x.end(), 0.0);
  if (x.size() < 2 || !(sum_x > 0)) return std::nullopt;
  const double ratio = std::accumulate(y.begin(), y.end(), 0.0) / sum_x;
  double squares = 0;
  for (std::size_t i = 0; i < x.size(); ++i) squares += std::pow(y[i] - ratio * x[i], 2);
  const auto pieces = static_cast<double>(x.size());
  return std::sqrt(pieces / (pieces - 1) * squares) / sum_x;
}

}  // namespace llama
