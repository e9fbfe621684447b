// SPDX-License-Identifier: MIT
/// Keys, values and queries to measure errors on: synthetic, real, and captured from models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvtilt::bench {

/// The input of attention in one layer. The queries belong to the newest tokens.
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
  std::vector<Part> parts;  ///< one per layer and text
};

/// Makes all sources. Every run of a build gives the same numbers.
///
/// data    examples/data: tensors, models and texts. Throws what reading them throws
/// page_tokens  the tokens of each part are a multiple of it, so that none stay in 16 bits
std::vector<Source> make_sources(const std::filesystem::path& data, int page_tokens);

}  // namespace kvtilt::bench
