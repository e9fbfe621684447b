// SPDX-License-Identifier: MIT
#include "link_order.hpp"

#include <cmath>
#include <cstddef>
#include <utility>

namespace link_order::SIDE {
namespace {

/// Two widths only: each side would take half a minute to compile with all of them.
using Widths = kvtilt::Formats<kvtilt::Keys<4>, kvtilt::Values<2>>;

float wave(int token, int channel, float phase) {
  return std::sin(static_cast<float>(token * 7 + channel) * 0.37f + phase);
}

kvtilt::Result<kvtilt::KVCache> fill(kvtilt::SequenceId& sequence) {
  const kvtilt::CacheShape shape = kvtilt::CacheShape::uniform(1, kv_heads, dim);
  const kvtilt::Result<kvtilt::Recipe> recipe = kvtilt::parse_recipe("k4v2");
  if (!recipe) return kvtilt::Status::error(recipe.code(), "recipe");
  kvtilt::CacheOptions options;
  options.recent_tokens = 64;
  kvtilt::Result<kvtilt::KVCache> cache =
      kvtilt::KVCache::create<Widths>(shape, kvtilt::Plan::uniform(shape, *recipe), options);
  if (!cache) return cache;
  const kvtilt::Result<kvtilt::SequenceId> opened = cache->open();
  if (!opened) return kvtilt::Status::error(opened.code(), "open");
  sequence = *opened;
  KVTILT_RETURN_IF_ERROR(cache->reserve(sequence, tokens));
  std::vector<float> keys;
  std::vector<float> values;
  for (int token = 0; token < tokens; ++token)
    for (int channel = 0; channel < kv_heads * dim; ++channel) {
      keys.push_back(wave(token, channel, 0.0f));
      values.push_back(wave(token, channel, 1.0f));
    }
  KVTILT_RETURN_IF_ERROR(cache->append(sequence, 0,
                                       kvtilt::TensorView(keys.data(), tokens, kv_heads, dim),
                                       kvtilt::TensorView(values.data(), tokens, kv_heads, dim)));
  return cache;
}

std::vector<float> attend(kvtilt::KVCache& cache, kvtilt::SequenceId sequence) {
  std::vector<float> query;
  for (int channel = 0; channel < query_heads * dim; ++channel)
    query.push_back(wave(3, channel, 2.0f));
  std::vector<float> output(query.size());
  const kvtilt::Result<kvtilt::LayerView> view = cache.view(sequence, 0);
  if (!view) return {};
  std::vector<std::byte> workspace(kvtilt::attend_workspace_bytes(*view));
  const kvtilt::Status status = kvtilt::attend(
      *view, kvtilt::TensorView(query.data(), 1, query_heads, dim),
      kvtilt::OutputView(output.data(), 1, query_heads, dim), kvtilt::AttendOptions{}, workspace);
  if (!status.ok()) return {};
  return output;
}

}  // namespace

const Engine engine = {fill, attend};

}  // namespace link_order::SIDE
