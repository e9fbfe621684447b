// SPDX-License-Identifier: MIT
#include "capturing_cache.hpp"

#include "fail.hpp"

#include <algorithm>
#include <utility>

namespace llama {
namespace {

void shorten(Floats& numbers, std::ptrdiff_t count) {
  numbers.resize(std::min(numbers.size(), static_cast<std::size_t>(count)));
}

}  // namespace

CapturingCache::CapturingCache(const ModelConfig& config, std::unique_ptr<AttentionCache> cache)
    : query_width_(config.query_width()),
      kv_width_(config.kv_width()),
      cache_(std::move(cache)),
      layers_(static_cast<std::size_t>(config.layers)) {}

void CapturingCache::restart(int positions) {
  cache_->restart(positions);
  for (CapturedLayer& layer : layers_) layer = {};
}

void CapturingCache::attend(int layer, int tokens, const float* queries, const float* turned,
                            const float* keys, const float* values, float* out) {
  cache_->attend(layer, tokens, queries, turned, keys, values, out);
  CapturedLayer& captured = layers_[static_cast<std::size_t>(layer)];
  const auto keep = [tokens](Floats& numbers, const float* data, std::ptrdiff_t width) {
    numbers.insert(numbers.end(), data, data + tokens * width);
  };
  keep(captured.queries, queries, query_width_);
  keep(captured.keys, keys, kv_width_);
  keep(captured.values, values, kv_width_);
}

void CapturingCache::truncate(int length) {
  cache_->truncate(length);
  for (CapturedLayer& layer : layers_) {
    shorten(layer.queries, length * query_width_);
    shorten(layer.keys, length * kv_width_);
    shorten(layer.values, length * kv_width_);
  }
}

void CapturingCache::remove(int from, int to) {
  fail("tokens ", from, " to ", to - 1, " are captured and cannot be removed");
}

}  // namespace llama
