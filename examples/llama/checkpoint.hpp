// SPDX-License-Identifier: MIT
// The tensors of a model folder: model.safetensors, or the shards model.safetensors.index.json
// names.
#pragma once

#include "floats.hpp"
#include "safetensors.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace llama {

class Checkpoint {
 public:
  /// Throws when the folder holds no checkpoint, or a shard is missing or damaged.
  explicit Checkpoint(const std::filesystem::path& folder);

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }

  /// The tensor as row-major float32; F32, F16 and BF16 are understood.
  /// Throws a sentence naming file and tensor when it is missing or its shape is not `shape`.
  Floats load(const std::string& name, const std::vector<std::int64_t>& shape);

  /// Names that no load() asked for, sorted.
  [[nodiscard]] std::vector<std::string> unused() const;

 private:
  struct Entry {
    const StoredTensor* tensor = nullptr;
    std::string file;
    bool used = false;
  };

  void add_file(const std::filesystem::path& path);
  void read_index(const std::filesystem::path& path);

  std::string description_;  // what a missing tensor is missing from
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace llama
