// SPDX-License-Identifier: MIT
/// The benches' caches, filled, and float64 references for their outputs.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Instantiated in kernels.cpp only.
extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);

namespace kvtilt::bench {

/// One layer with the shape of Llama 3 8B.
inline constexpr int query_heads = 32;
inline constexpr int kv_heads = 8;
inline constexpr int head_dim = 128;
inline constexpr std::size_t token_elements = 2 * std::size_t{kv_heads} * head_dim;

/// Where tokens are: all in sealed pages, so that only the recipe is measured, or with the default
/// tail and sinks, as engines have them.
enum class Tail { None, Default };

/// Options whose page size is the recipe's key group, if that is a page size.
CacheOptions cache_options(const Recipe& recipe, Tail tail);

/// Keys and values [tokens, kv_heads, head_dim]: normal, with a bias of 6 to 12 in four channels of
/// each key head, as real keys have. Repeats every 4096 tokens.
struct Text {
  explicit Text(std::int64_t tokens);
  [[nodiscard]] TensorView keys() const;
  [[nodiscard]] TensorView values() const;

  std::int64_t tokens;
  std::vector<float> key_rows;
  std::vector<float> value_rows;
};

/// The text that the caches hold, again and again: its first 4096 tokens.
const Text& base_text();

/// Queries [tokens, query_heads, head_dim], normal with a standard deviation of 2, which makes the
/// softmax moderately peaked.
std::vector<float> make_queries(std::int64_t tokens);

/// A cache with one sequence of `tokens` tokens.
struct FilledCache {
  FilledCache(const std::string& recipe, std::int64_t tokens, Tail tail = Tail::None);
  [[nodiscard]] LayerView view() const { return cache.view(sequence, 0).value(); }
  [[nodiscard]] double bits() const;  ///< stored bits per element, metadata included

  KVCache cache;
  SequenceId sequence;
};

/// Returns the same cache in every call, because benches run in random order.
FilledCache& filled_cache(const std::string& recipe, std::int64_t tokens, Tail tail = Tail::None);

/// Attention of one query token over the unquantized text, [query_heads, head_dim], in float64.
const std::vector<double>& reference_output(std::int64_t tokens);

/// Ends the program with the message if `status` is an error.
void require(const Status& status);

/// ||a - b|| / ||b||.
double relative_error(const std::vector<float>& a, const std::vector<double>& b);

}  // namespace kvtilt::bench
