// SPDX-License-Identifier: MIT
// Reads head counts and sizes from checkpoints, also of models that this engine cannot run.
#pragma once

#include <kvtilt/io/gguf_metadata.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llama {

/// The head_dim that a checkpoint states.
struct HeadSizes {
  std::vector<std::int64_t> any_of;  // several if layers differ, empty if not stated
  std::string text;                  // the same for messages
  bool guessed = false;              // the usual default of families that state none

  void add(const std::string& what, std::int64_t size) {
    any_of.push_back(size);
    text += (text.empty() ? "" : ", ") + what + " is " + std::to_string(size);
  }
  [[nodiscard]] bool allow(std::int64_t size) const {
    return any_of.empty() || std::find(any_of.begin(), any_of.end(), size) != any_of.end();
  }
};

/// Counts that tensor shapes do not determine, the head sizes to check, and the meaning of gains.
struct HeadCounts {
  std::int64_t layers = 0;
  std::int64_t query_heads = 0;
  std::vector<std::int64_t> kv_heads;  // per layer, or one for all
  HeadSizes key_sizes;
  HeadSizes value_sizes;
  bool gains_add_one = false;  // QK-norms multiply by 1 + what is stored
};

/// Reads a config.json. Throws, naming file and key, for a key that is absent or out of range.
HeadCounts config_counts(const std::filesystem::path& path);

/// Reads a GGUF file's key-value pairs. Throws likewise, and for counts that contradict each other.
HeadCounts gguf_counts(const kvtilt::GgufMetadata& metadata, const std::string& file);

}  // namespace llama
