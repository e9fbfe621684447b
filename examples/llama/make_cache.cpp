// SPDX-License-Identifier: MIT
#include "make_cache.hpp"

#include <kvtilt/io/format_name.hpp>

#include "float_cache.hpp"
#include "kvtilt_cache.hpp"

namespace llama {

namespace {

kvtilt::Recipe recipe_of(const std::string& name) {
  const std::size_t slash = name.find('/');
  if (slash == std::string::npos) return kvtilt::parse_recipe(name).value();
  return {kvtilt::parse_format(name.substr(0, slash)).value(),
          kvtilt::parse_format(name.substr(slash + 1)).value()};
}

}  // namespace

std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const std::string& recipe,
                                           const CacheSettings& settings) {
  if (recipe == baseline_recipe) return std::make_unique<FloatCache>(config);
  return make_cache(config, kvtilt::Plan::uniform(cache_shape(config), recipe_of(recipe)),
                    settings);
}

std::unique_ptr<AttentionCache> make_cache(const ModelConfig& config, const kvtilt::Plan& plan,
                                           const CacheSettings& settings) {
  return std::make_unique<KvtiltCache>(config, plan, settings);
}

}  // namespace llama
