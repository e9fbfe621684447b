// SPDX-License-Identifier: MIT
#include "make_cache.hpp"

#include "float_cache.hpp"
#include "kvtilt_cache.hpp"

namespace llama {

std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const std::string& recipe,
                                           const CacheSettings& settings) {
  if (recipe == baseline_recipe) return std::make_unique<FloatCache>(config);
  return std::make_unique<KvtiltCache>(config, recipe, settings);
}

}  // namespace llama
