// SPDX-License-Identifier: MIT
/// Reimplements the allocators of spectral-kv (e9ed423, kvq/bit_pattern.py and
/// kvq/group_pattern.py) with their rules for ties, for comparison: bits by marginal gain, groups
/// by rounding and repair.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace kvtilt::test {

/// Bits of tensors K0, V0, K1, V1, ... of given norms: all start at the fewest bits; the tensor with
/// the largest drop of norm^2 * 4^-bits per bit is raised by one level, as long as one fits.
inline std::vector<double> reference_bits(const std::vector<double>& norms,
                                          std::vector<double> levels, double budget) {
  std::sort(levels.begin(), levels.end());
  const double total = static_cast<double>(norms.size()) * budget;
  std::vector<std::size_t> at(norms.size(), 0);
  double used = 0;
  for (std::size_t i = 0; i < norms.size(); ++i) used += levels[0];
  while (used + 1e-6 < total) {
    double best_gain = -1;
    std::size_t best = norms.size();
    for (std::size_t i = 0; i < norms.size(); ++i) {
      if (at[i] + 1 == levels.size()) continue;
      const double now = levels[at[i]];
      const double next = levels[at[i] + 1];
      if (used + (next - now) > total + 1e-6) continue;
      const double c = norms[i] * norms[i];
      const double gain =
          (c * std::pow(2.0, -2 * now) - c * std::pow(2.0, -2 * next)) / (next - now);
      if (gain > best_gain + 1e-6) {  // an absolute margin, whatever the size of the norms
        best_gain = gain;
        best = i;
      }
    }
    if (best == norms.size()) break;
    used += levels[at[best] + 1] - levels[at[best]];
    ++at[best];
  }
  std::vector<double> bits;
  for (const std::size_t level : at) bits.push_back(levels[level]);
  return bits;
}

/// Groups of the same tensors: least sum of norm * group where the groups' inverses add up to
/// tensors / budget.
inline std::vector<int> reference_groups(const std::vector<double>& norms,
                                         const std::vector<int>& sizes, double budget) {
  const double target = static_cast<double>(norms.size()) / budget;
  double roots = 0;
  for (const double norm : norms) roots += std::sqrt(norm);
  std::vector<std::size_t> at;
  for (const double norm : norms) {
    const double ideal = roots / target / std::sqrt(norm);
    at.push_back(0);
    for (std::size_t size = 1; size < sizes.size(); ++size)
      if (std::abs(sizes[size] - ideal) < std::abs(sizes[at.back()] - ideal)) at.back() = size;
  }
  const auto inverse = [&](std::size_t size) { return 1.0 / sizes[size]; };
  for (;;) {
    double sum = 0;
    for (const std::size_t size : at) sum += inverse(size);
    if (std::abs(sum - target) <= 1e-6) break;
    const bool enlarge = sum > target;
    std::size_t best = norms.size();
    double best_ratio = 0;
    for (std::size_t i = 0; i < norms.size(); ++i) {
      if (enlarge ? at[i] + 1 == sizes.size() : at[i] == 0) continue;
      const std::size_t other = enlarge ? at[i] + 1 : at[i] - 1;
      const double change = inverse(other) - inverse(at[i]);
      if (enlarge ? sum + change < target - 1e-6 : sum + change > target + 1e-6) continue;
      const double ratio = norms[i] * (sizes[other] - sizes[at[i]]) / -change;
      if (best == norms.size() || (enlarge ? ratio < best_ratio : ratio > best_ratio)) {
        best = i;
        best_ratio = ratio;
      }
    }
    if (best == norms.size()) break;
    at[best] += enlarge ? 1u : static_cast<std::size_t>(-1);
  }
  std::vector<int> groups;
  for (const std::size_t size : at) groups.push_back(sizes[size]);
  return groups;
}

}  // namespace kvtilt::test
