// SPDX-License-Identifier: MIT
// Files for what takes long to find: refused before the work, written whole after it.
#pragma once

#include <kvtilt/io/json.hpp>
#include <kvtilt/io/write_file.hpp>

#include "fail.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace llama {

/// A file that an option asks for; an empty path asks for none.
struct OutputFile {
  std::string option;
  std::filesystem::path path;
};

/// Throws for a file that cannot be written and for one that two options ask for. Changes nothing.
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

/// Replaces the file, unless the path is empty; throws where that fails.
inline void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& figures) {
  if (path.empty()) return;
  const auto written = kvtilt::write_file(path, figures.dump(2) + '\n');
  if (!written.ok()) fail(written.message());
}

/// A text with names of files, which need not be UTF-8 as JSON must.
inline std::string json_text(const std::string& text) {
  return kvtilt::to_json_string(text).ok() ? text : kvtilt::shown(text, text.size());
}

}  // namespace llama
