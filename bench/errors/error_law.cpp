// SPDX-License-Identifier: MIT
// Measures the table of plan/error_law.hpp and prints it in the form that it has there.
#include <kvtilt/plan/error_law.hpp>
#include <kvtilt/plan/measure_error.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numbers>
#include <random>
#include <string>
#include <vector>

namespace kvtilt::bench {

namespace {

constexpr std::size_t elements = std::size_t{1} << 24;
constexpr int page_tokens = 128;

/// Unit Gaussians that do not depend on the standard library's normal_distribution.
std::vector<float> gaussians() {
  std::mt19937_64 bits(2502);
  const auto uniform = [&] { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; };
  std::vector<float> data(elements);
  for (std::size_t i = 0; i < elements; i += 2) {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    const double angle = 2 * std::numbers::pi * uniform();
    data[i] = static_cast<float>(radius * std::cos(angle));
    data[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return data;
}

double mean_square_error(const std::vector<float>& data, const Format& format, int dim) {
  const TensorView view(data.data(), static_cast<std::int64_t>(elements) / dim, 1, dim);
  return measure_error(view, 0, format, page_tokens).value() / static_cast<double>(elements);
}

const char* name_of(RangeRule rule) {
  return rule == RangeRule::MinMax ? "MinMax" : rule == RangeRule::MinMse ? "MinMse" : "Centroids";
}

void print_table() {
  const std::vector<float> data = gaussians();
  for (const detail::LawRow& row : detail::law_rows) {
    std::string line = "    {" + std::to_string(row.bits) + ", RangeRule::" + name_of(row.rule);
    for (int i = 0; i < detail::law_group_count; ++i) {
      const int group = detail::law_groups[i];
      char number[32];
      std::snprintf(
          number, sizeof number, "%.4g",
          mean_square_error(data, {row.bits, Granularity::PerToken, group, row.rule}, group));
      line += (i == 0 ? ", {" : ", ") + std::string(number);
    }
    std::printf("%s}},\n", line.c_str());
    std::fflush(stdout);
  }
  std::printf("law_half = %.4g\n", mean_square_error(data, Format{}, 128));
}

}  // namespace

}  // namespace kvtilt::bench

int main() { kvtilt::bench::print_table(); }
