// SPDX-License-Identifier: MIT
// A CLI11 check that refuses NaN, which passes CLI11's range checks.
#pragma once

#include <kvtilt/plan/losses.hpp>

#include <CLI/CLI.hpp>

#include <string>

namespace llama {

/// For options of type double, beside the check of their range.
inline const CLI::Validator finite(
    [](std::string& text) -> std::string {
      double number = 0;
      const bool bad =
          CLI::detail::lexical_cast(text, number) && !kvtilt::detail::is_finite(number);
      return bad ? "Value " + text + " is not a finite number" : "";
    },
    "");

}  // namespace llama
