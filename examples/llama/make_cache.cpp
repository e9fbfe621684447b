// SPDX-License-Identifier: MIT
#include "make_cache.hpp"

#include "float_cache.hpp"
#include "kvtilt_cache.hpp"

namespace llama {

std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const std::string& recipe,
                                           const CacheSettings& settings) {
  if (recipe == baseline_recipe) return std::make_unique<FloatCache>(config);
  const auto plan =
      kvtilt::Plan::uniform(cache_shape(config), kvtilt::parse_recipe(recipe).value());
  return std::make_unique<KvtiltCache>(config, plan, settings);
}

}  // namespace llama
