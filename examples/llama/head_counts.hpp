// SPDX-License-Identifier: MIT
// What checkpoints say of the heads of models that this engine need not be able to run.
#pragma once

#include <kvtilt/io/gguf_metadata.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llama {

/// What a checkpoint says of the numbers in a head.
struct HeadSizes {
  std::vector<std::int64_t> any_of;  // several where layers differ, none where nothing is said
  std::string text;                  // the same for messages
  bool guessed = false;              // what families take that say nothing, but not all of them

  void add(const std::string& what, std::int64_t size) {
    any_of.push_back(size);
    text += (text.empty() ? "" : ", ") + what + " is " + std::to_string(size);
  }
  [[nodiscard]] bool allow(std::int64_t size) const {
    return any_of.empty() || std::find(any_of.begin(), any_of.end(), size) != any_of.end();
  }
};

/// Counts that the tensors' shapes do not tell, sizes that they must have, and what gains mean.
struct HeadCounts {
  std::int64_t layers = 0;
  std::int64_t query_heads = 0;
  std::vector<std::int64_t> kv_heads;  // per layer, or one for all
  HeadSizes key_sizes;
  HeadSizes value_sizes;
  bool gains_add_one = false;  // QK-norms multiply by 1 + what is stored
};

/// Out of a config.json. Refused, with its name and the key's: what is absent or out of range.
HeadCounts config_counts(const std::filesystem::path& path);

/// Out of a GGUF file's pairs. Refused likewise, and where counts contradict each other.
HeadCounts gguf_counts(const kvtilt::GgufMetadata& metadata, const std::string& file);

}  // namespace llama
