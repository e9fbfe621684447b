// SPDX-License-Identifier: MIT
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>

namespace llama {

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      text += i == 0 ? row[i] + padding : "  " + padding + row[i];
    }
    text += '\n';
  }
  return text;
}

std::string format_scientific(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*e", digits, value);
  return buffer;
}

std::string format_scientific(double value, std::optional<double> error, int digits) {
  const std::string text = format_scientific(value, digits);
  if (!error) return text + " +- -";
  const std::string exponent = text.substr(text.find('e'));
  const double unit = std::pow(10, std::stoi(exponent.substr(1)));
  return text + " +- " + format_number(*error / unit, digits) + exponent;
}

std::string format_number(double value, int digits) {
  char buffer[400];  // the largest double has 309 digits before the point
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  std::string text = buffer;
  const std::size_t first = text.starts_with('-') ? 1 : 0;
  for (std::size_t i = std::min(text.find('.'), text.size()); i > first + 3;) {
    i -= 3;
    text.insert(i, ",");
  }
  return text;
}

}  // namespace llama
