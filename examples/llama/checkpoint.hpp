// SPDX-License-Identifier: MIT
// Loads the weights of a model folder with kvtilt's reader, checks their shapes against
// config.json's, and lists the tensors that were not used.
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

  /// The tensor as row-major float32. Throws a sentence naming file and tensor if it is missing,
  /// its shape is not `shape`, or its type cannot be read.
  Floats load(const std::string& name, const std::vector<std::int64_t>& shape);

  /// The names of tensors that were never loaded, sorted.
  [[nodiscard]] std::vector<std::string> unused() const;

 private:
  kvtilt::Checkpoint file_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace llama
