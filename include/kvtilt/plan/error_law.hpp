// SPDX-License-Identifier: MIT
/// Expected squared error of a format on unit Gaussian data: how losses scale from one format to
/// another where nothing was measured.
///
/// Not 4^-bits: the error of a min-max code follows 1/(2^bits - 1)^2, and the other rules follow no
/// formula. So this is a table, measured on this library's own quantizers. `bench/run.sh
/// --error-law` prints it.
#pragma once

#include <kvtilt/quant/format.hpp>

namespace kvtilt {

namespace detail {

inline constexpr int law_groups[] = {8, 16, 32, 64, 128};
inline constexpr int law_group_count = 5;

/// One rule and width: the mean squared error for each of law_groups.
struct LawRow {
  int bits;
  RangeRule rule;
  double errors[law_group_count];
};

// Sampling error: below 0.2 % of each number.
inline constexpr LawRow law_rows[] = {
    {1, RangeRule::Centroids, {0.26, 0.31, 0.343, 0.352, 0.358}},
    {2, RangeRule::MinMse, {0.05, 0.07, 0.094, 0.109, 0.118}},
    {3, RangeRule::MinMse, {0.012, 0.017, 0.0222, 0.0282, 0.0333}},
    {4, RangeRule::MinMse, {0.0028, 0.0039, 0.0051, 0.0069, 0.0086}},
    {5, RangeRule::MinMse, {0.0007, 0.00098, 0.00128, 0.00168, 0.00209}},
    {2, RangeRule::MinMax, {0.075, 0.113, 0.155, 0.203, 0.249}},
    {3, RangeRule::MinMax, {0.0138, 0.0207, 0.0284, 0.0371, 0.0456}},
    {4, RangeRule::MinMax, {0.003, 0.0045, 0.00613, 0.00805, 0.00992}},
    {5, RangeRule::MinMax, {0.0007, 0.00105, 0.00144, 0.00188, 0.00232}},
    {6, RangeRule::MinMax, {0.00017, 0.000255, 0.00035, 0.00046, 0.00056}},
    {7, RangeRule::MinMax, {4.2e-5, 6.3e-5, 8.5e-5, 1.1e-4, 1.4e-4}},
    {8, RangeRule::MinMax, {1.04e-5, 1.56e-5, 2.15e-5, 2.8e-5, 3.4e-5}},
};

/// Rounding to fp16, which every other format does as well.
inline constexpr double law_half = 3.5e-8;

}  // namespace detail

/// Mean squared error / variance of Gaussian data stored in a format. Groups between those of the
/// table are interpolated; granularity does not matter on independent data, on real data it does:
/// measure_error tells. The format should be resolved; a group of 0 counts as 128.
constexpr double relative_error(const Format& format) {
  if (!format.quantized()) return detail::law_half;
  constexpr int last = detail::law_group_count - 1;
  const int group = format.group > 0 ? format.group : detail::law_groups[last];
  for (const detail::LawRow& row : detail::law_rows) {
    if (row.bits != format.bits || row.rule != format.rule) continue;
    if (group <= detail::law_groups[0]) return row.errors[0];
    for (int i = 1; i <= last; ++i) {
      if (group > detail::law_groups[i]) continue;
      const int below = detail::law_groups[i - 1];
      const double share = static_cast<double>(group - below) / (detail::law_groups[i] - below);
      return row.errors[i - 1] + share * (row.errors[i] - row.errors[i - 1]);
    }
    return row.errors[last];
  }
  return 1.0;  // no such width and rule: nothing of the signal is left
}

}  // namespace kvtilt
