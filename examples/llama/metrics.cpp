// SPDX-License-Identifier: MIT
#include "metrics.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

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

}  // namespace llama
