// SPDX-License-Identifier: MIT
/// Filled caches of the benches' shape, and what float64 says about them.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// Compiled in kernels.cpp alone.
extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);

namespace kvtilt::bench {

/// One layer of a model of the Llama 3 8B kind.
inline constexpr int query_heads = 32;
inline constexpr int kv_heads = 8;
inline constexpr int head_dim = 128;
inline constexpr std::size_t token_elements = 2 * std::size_t{kv_heads} * head_dim;

/// How tokens are placed: all sealed, so that a recipe is measured alone, or as engines have it.
enum class Tail { None, Default };

/// A page is as large as the recipe's key group, where a page may be.
CacheOptions cache_options(const Recipe& recipe, Tail tail);

/// `tokens` keys and values, [tokens, kv_heads, head_dim]: normal, and four channels of each key
/// head with a bias of 6 to 12, as real keys have. Repeats itself every 4096 tokens.
struct Text {
  explicit Text(std::int64_t tokens);
  [[nodiscard]] TensorView keys() const;
  [[nodiscard]] TensorView values() const;

  std::int64_t tokens;
  std::vector<float> key_rows;
  std::vector<float> value_rows;
};

/// [tokens, query_heads, head_dim], normal with a standard deviation of 2: moderately peaked.
std::vector<float> make_queries(std::int64_t tokens);

/// A cache with one sequence of `tokens` tokens.
struct FilledCache {
  FilledCache(const std::string& recipe, std::int64_t tokens, Tail tail = Tail::None);
  [[nodiscard]] LayerView view() const { return cache.view(sequence, 0).value(); }
  [[nodiscard]] double bits() const;  ///< stored bits per element, everything counted

  KVCache cache;
  SequenceId sequence;
};

/// The same cache each time: benches run in random order.
FilledCache& filled_cache(const std::string& recipe, std::int64_t tokens, Tail tail = Tail::None);

/// Attention of one query token over the unquantized text, [query_heads, head_dim], in float64.
const std::vector<double>& reference_output(std::int64_t tokens);

/// Ends the program with the message of a failure.
void require(const Status& status);

/// ||a - b|| / ||b||.
double relative_error(const std::vector<float>& a, const std::vector<double>& b);

}  // namespace kvtilt::bench
