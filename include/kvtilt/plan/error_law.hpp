// SPDX-License-Identifier: MIT
/// Expected squared error of a format on unit Gaussian data: the law by which losses scale from one
/// format to another where nothing was measured.
///
/// The law is not 4^-bits: the error of a min-max code follows 1/(2^bits - 1)^2, and the other
/// rules follow no formula. So it is a table, measured on this library's own quantizers, which
/// `bench/run.sh --error-law` prints.
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

// Sampling error of these numbers: below 0.2 %. That of groups between: see relative_error.
inline constexpr LawRow law_rows[] = {
    {1, RangeRule::Centroids, {0.2393, 0.2996, 0.3309, 0.3469, 0.3551}},
    {2, RangeRule::MinMse, {0.04456, 0.07178, 0.09386, 0.1088, 0.1182}},
    {3, RangeRule::MinMse, {0.009013, 0.01538, 0.0219, 0.02798, 0.03346}},
    {4, RangeRule::MinMse, {0.001957, 0.003449, 0.005105, 0.006842, 0.008616}},
    {5, RangeRule::MinMse, {0.0005126, 0.0008727, 0.001268, 0.00168, 0.002097}},
    {2, RangeRule::MinMax, {0.06173, 0.107, 0.1545, 0.2025, 0.2507}},
    {3, RangeRule::MinMax, {0.01124, 0.01947, 0.02817, 0.03694, 0.04577}},
    {4, RangeRule::MinMax, {0.002443, 0.004232, 0.006124, 0.008038, 0.009962}},
    {5, RangeRule::MinMax, {0.000572, 0.0009908, 0.001434, 0.001882, 0.002332}},
    {6, RangeRule::MinMax, {0.0001387, 0.00024, 0.0003472, 0.0004557, 0.0005646}},
    {7, RangeRule::MinMax, {3.428e-05, 5.919e-05, 8.55e-05, 0.0001122, 0.000139}},
    {8, RangeRule::MinMax, {8.678e-06, 1.482e-05, 2.133e-05, 2.793e-05, 3.454e-05}},
};

/// Error of rounding to fp16, which the errors of all other formats include.
inline constexpr double law_half = 4.315e-8;

}  // namespace detail

/// Mean squared error / variance of Gaussian data stored in a format. Groups between those of the
/// table are interpolated (within 2 %). Granularity makes no difference on independent data; on real
/// data it does (use measure_error). The format should be resolved; a group of 0 counts as 128.
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
      // Errors are nearly linear in log2(group); x (4 - x) / 3 is log2(1 + x) within 0.01.
      const double x = static_cast<double>(group - below) / (detail::law_groups[i] - below);
      const double share = x * (4 - x) / 3;
      return row.errors[i - 1] + share * (row.errors[i] - row.errors[i - 1]);
    }
    return row.errors[last];
  }
  return 1.0;  // no such width and rule: nothing of the signal is left
}

}  // namespace kvtilt
