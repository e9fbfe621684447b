// SPDX-License-Identifier: MIT
// The weights of a model folder: kvtilt's reader, the shapes that config.json asks for, and a list
// of what nobody asked for.
#pragma once

#include <kvtilt/io/checkpoint.hpp>

#include "floats.hpp"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace llama {

class Checkpoint {
 public:
  /// Throws when the folder holds no checkpoint, or a file of it is missing or damaged.
  explicit Checkpoint(const std::filesystem::path& folder);

  /// The tensor as row-major float32.
  /// Throws a sentence naming file and tensor when it is missing, its shape is not `shape`, or its
  /// type cannot be read.
  Floats load(const std::string& name, const std::vector<std::int64_t>& shape);

  /// Names that no load() asked for, sorted.
  [[nodiscard]] std::vector<std::string> unused() const;

 private:
  kvtilt::Checkpoint file_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace llama
