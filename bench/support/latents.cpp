// SPDX-License-Identifier: MIT
#include "support/latents.hpp"

#include "support/reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <utility>

namespace kvtilt::bench {

namespace {

KVCache make_cache(const std::string& name, LatentValues values) {
  LayerShape layer = LayerShape::latent(latent_rank, latent_dim - latent_rank);
  Recipe recipe = parse_recipe(name).value();
  layer.values_in_keys = values == LatentValues::InKeys;
  if (values == LatentValues::Apart) recipe.value = recipe.key;
  const CacheShape shape{{layer}};
  return KVCache::create(shape, Plan::uniform(shape, recipe), cache_options(recipe, Tail::None))
      .value();
}

}  // namespace

const std::vector<float>& latents() {
  static const std::vector<float> rows = [] {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<std::pair<float, float>> channels;  // sizes and biases
    for (int channel = 0; channel < latent_dim; ++channel) {
      const float size = std::exp(0.5f * normal(random));
      channels.emplace_back(size, size * normal(random));
    }
    std::vector<float> made;
    for (std::int64_t token = 0; token < latent_period; ++token)
      for (const auto& [size, bias] : channels) made.push_back(bias + size * normal(random));
    return made;
  }();
  return rows;
}

std::vector<float> latent_queries(int heads) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<std::size_t>(heads * latent_dim));
  for (float& x : queries) x = normal(random);
  return queries;
}

FilledLatents::FilledLatents(const std::string& recipe, std::int64_t tokens, LatentValues values)
    : cache(make_cache(recipe, values)), sequence(cache.open().value()) {
  require(cache.reserve(sequence, tokens));
  for (std::int64_t token = 0; token < tokens; token += latent_period) {
    const TensorView keys(latents().data(), std::min(latent_period, tokens - token), 1, latent_dim);
    TensorView apart = keys;
    apart.dim = latent_rank;
    require(cache.append(sequence, 0, keys, values == LatentValues::Apart ? apart : TensorView{}));
  }
}

FilledLatents& filled_latents(const std::string& recipe, std::int64_t tokens, LatentValues values) {
  static std::map<std::tuple<std::string, std::int64_t, LatentValues>,
                  std::unique_ptr<FilledLatents>>
      known;
  std::unique_ptr<FilledLatents>& filled = known[{recipe, tokens, values}];
  if (filled == nullptr) filled = std::make_unique<FilledLatents>(recipe, tokens, values);
  return *filled;
}

const std::vector<double>& latent_reference(int heads, std::int64_t tokens) {
  static std::map<std::pair<int, std::int64_t>, std::vector<double>> known;
  std::vector<double>& out = known[{heads, tokens}];
  if (!out.empty()) return out;
  out.assign(static_cast<std::size_t>(heads * latent_rank), 0.0);
  const std::vector<float> queries = latent_queries(heads);
  const ReferenceShape shape{latent_dim, latent_rank, latent_dim,
                             static_cast<double>(latent_scale)};
  const float* rows = latents().data();
  for (int head = 0; head < heads; ++head)
    add_reference(
        shape, queries.data() + head * latent_dim, rows, rows,
        static_cast<std::size_t>(latent_period),
        [&](std::size_t) { return static_cast<double>(tokens / latent_period); },
        out.data() + head * latent_rank);
  return out;
}

}  // namespace kvtilt::bench
