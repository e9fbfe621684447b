// SPDX-License-Identifier: MIT
// Right-aligned tables for terminals.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace llama {

/// Formats each row as a line; the first column is left-aligned, the others right-aligned.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

/// `value` with `digits` after the point; a thousands separator before it.
std::string format_number(double value, int digits);

/// 1.2e-03, with `digits` after the point.
std::string format_scientific(double value, int digits);

/// 1.23e-03 +- 0.04e-03: a value and its error with one exponent; - in place of no error.
std::string format_scientific(double value, std::optional<double> error, int digits);

}  // namespace llama
