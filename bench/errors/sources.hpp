// SPDX-License-Identifier: MIT
/// Keys, values and queries to measure errors on: made up, real, and captured from models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvtilt::bench {

/// What one layer attends with. The queries belong to the newest tokens.
struct Part {
  int kv_heads = 0;
  int query_heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t query_tokens = 0;
  std::vector<float> keys;     ///< [tokens, kv_heads, head_dim]
  std::vector<float> values;   ///< [tokens, kv_heads, head_dim]
  std::vector<float> queries;  ///< [query_tokens, query_heads, head_dim]
};

struct Source {
  std::string name;
  std::string description;
  std::vector<Part> parts;  ///< layers, texts
};

/// The same numbers on every run of a build.
///
/// data    examples/data: tensors, models and texts. Throws what reading them throws
/// tokens  of each part are a multiple of this, so that nothing stays in 16 bits
std::vector<Source> make_sources(const std::filesystem::path& data, int page_tokens);

}  // namespace kvtilt::bench
