// SPDX-License-Identifier: MIT
// Makes a cache from the name of a recipe.
#pragma once

#include <kvtilt/quant/plan.hpp>

#include "attention_cache.hpp"
#include "config.hpp"

#include <cstdint>
#include <memory>
#include <string>

namespace llama {

/// The recipe name of the 16-bit baseline, which does not use kvtilt.
inline constexpr const char* baseline_recipe = "f16";

/// How kvtilt multiplies codes: in integers where that is fast, or in float32 throughout.
enum class CacheArithmetic { Fast, Exact };

struct CacheSettings {
  int page_tokens = 64;     // tokens quantized together
  int recent_tokens = 128;  // newest tokens kept in 16 bits, at least
  int sink_tokens = 4;      // first tokens kept in 16 bits
  CacheArithmetic arithmetic = CacheArithmetic::Fast;
  std::uint64_t fingerprint = 0;  // of the model, for save() and load()
};

/// Throws kvtilt's message if it does not know the recipe or refuses the settings. Besides the
/// library's names (k4v2), a recipe may state the formats of keys and values in full:
/// 4c:g64:min-max/2t.
std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const std::string& recipe,
                                           const CacheSettings& settings);

/// The same for a plan.
std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const kvtilt::Plan& plan,
                                           const CacheSettings& settings);

}  // namespace llama
