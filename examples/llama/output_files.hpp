// SPDX-License-Identifier: MIT
// Output files of long computations: checked before the work, written whole after it.
#pragma once

#include <kvtilt/io/json.hpp>
#include <kvtilt/io/write_file.hpp>

#include "fail.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llama {

/// The output file of a command-line option; an empty path means none.
struct OutputFile {
  std::string option;
  std::filesystem::path path;
};

/// Throws if a file cannot be written or two options name the same one. Changes nothing.
inline void check_outputs(const std::vector<OutputFile>& outputs) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto& [option, path] = outputs[i];
    if (path.empty()) continue;
    const auto writable = kvtilt::check_writable(path);
    if (!writable.ok()) fail(option, ": ", writable.message());
    for (std::size_t j = 0; j < i; ++j) {
      if (!outputs[j].path.empty() && std::filesystem::weakly_canonical(outputs[j].path) ==
                                          std::filesystem::weakly_canonical(path)) {
        fail(outputs[j].option, " and ", option, " would write the same file, ",
             kvtilt::shown_path(path));
      }
    }
  }
}

/// Replaces the file, unless the path is empty; throws if that fails.
inline void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& figures) {
  if (path.empty()) return;
  const auto written = kvtilt::write_file(path, figures.dump(2) + '\n');
  if (!written.ok()) fail(written.message());
}

/// A text made valid UTF-8 for JSON: names of files in it need not be.
inline std::string json_text(const std::string& text) {
  return kvtilt::to_json_string(text).ok() ? text : kvtilt::shown(text, text.size());
}

/// A number for JSON, null if there is none or JSON cannot write it.
inline nlohmann::ordered_json json_number(std::optional<double> value) {
  return value && std::isfinite(*value) ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

}  // namespace llama
