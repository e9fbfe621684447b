// SPDX-License-Identifier: MIT
// A file for figures that take long to find: opened before the work, written after it.
#pragma once

#include "fail.hpp"

#include <nlohmann/json.hpp>

#include <fstream>
#include <string>

namespace llama {

class JsonOutput {
 public:
  /// Throws when the file cannot be written. An empty path writes nothing.
  explicit JsonOutput(const std::string& path) : path_(path) {
    if (path.empty()) return;
    file_.open(path);
    if (!file_) fail(path, ": cannot be written");
  }

  void write(const nlohmann::ordered_json& figures) {
    if (path_.empty()) return;
    file_ << figures.dump(2) << '\n';
    file_.close();
    if (!file_) fail(path_, ": could not be written whole");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace llama
