// SPDX-License-Identifier: MIT
#include "kvtilt_attention.h"

#include "ggml_attention.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

void require(const kvtilt::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "kvtilt: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}

int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoi(text) : otherwise;
}

kvtilt::KVCache make_cache(const char* recipe, const kvtilt::CacheShape& shape) {
  kvtilt::CacheOptions options;
  options.recent_tokens = number("KVTILT_TAIL", options.recent_tokens);
  options.sink_tokens = number("KVTILT_SINKS", options.sink_tokens);
  return kvtilt::KVCache::create(
             shape, kvtilt::Plan::uniform(shape, kvtilt::parse_recipe(recipe).value()), options)
      .value();
}

/// The cache of the only sequence, and the nodes of all layers.
struct Engine {
  Engine(const char* recipe, const kvtilt::CacheShape& shape, int tokens)
      : cache(make_cache(recipe, shape)),
        sequence(cache.open().value()),
        layers(shape.layers.size()) {
    require(cache.reserve(sequence, tokens));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      layers[i].cache = &cache;
      layers[i].layer = static_cast<int>(i);
      layers[i].team = &team;
    }
  }

  kvtilt::KVCache cache;
  kvtilt::SequenceId sequence;
  ThreadTeam team;
  std::vector<GgmlAttention> layers;
};

}  // namespace

ggml_tensor* kvtilt_attention(ggml_context* context, int layer, int layers, int context_tokens,
                              float scale, bool first, ggml_tensor* q, ggml_tensor* k,
                              ggml_tensor* v) {
  static const char* const recipe = std::getenv("KVTILT");
  if (recipe == nullptr) return nullptr;
  static Engine engine(
      recipe,
      kvtilt::CacheShape::uniform(layers, static_cast<int>(k->ne[1]), static_cast<int>(k->ne[0])),
      context_tokens);
  GgmlAttention& attention = engine.layers.at(static_cast<std::size_t>(layer));
  attention.options.scale = scale;
  require(attention.status());
  if (first && layer == 0) require(engine.cache.truncate(engine.sequence, 0));
  attention.rows = {{engine.sequence, 0, q->ne[2]}};
  return attention.node(context, q, k, v);
}
