// SPDX-License-Identifier: MIT
// Records what a model passes to its cache, for studies of the numbers themselves.
#pragma once

#include "attention_cache.hpp"
#include "config.hpp"
#include "floats.hpp"

#include <memory>
#include <vector>

namespace llama {

/// One layer's inputs since the sequence began, as float32, before any cache rounds them.
struct CapturedLayer {
  Floats queries;  // [tokens, query_heads, head_dim], rotated
  Floats keys;     // [tokens, kv_heads, head_dim], rotated
  Floats values;   // [tokens, kv_heads, head_dim]
};

/// Forwards to another cache, and keeps a copy of everything that it was given.
class CapturingCache final : public AttentionCache {
 public:
  CapturingCache(const ModelConfig& config, std::unique_ptr<AttentionCache> cache);

  [[nodiscard]] const std::vector<CapturedLayer>& layers() const { return layers_; }

  void restart(int positions) override;
  void attend(int layer, int tokens, const float* queries, const float* turned, const float* keys,
              const float* values, float* out) override;
  [[nodiscard]] int draft_room() const override { return cache_->draft_room(); }
  void truncate(int length) override;
  /// Always throws: what was captured stays, and would no longer be what the cache holds.
  void remove(int from, int to) override;
  [[nodiscard]] int removed() const override { return cache_->removed(); }
  [[nodiscard]] int length() const override { return cache_->length(); }
  [[nodiscard]] CacheUsage usage() const override { return cache_->usage(); }
  [[nodiscard]] double page_bits() const override { return cache_->page_bits(); }
  [[nodiscard]] bool touched_codes() const override { return cache_->touched_codes(); }

 private:
  std::ptrdiff_t query_width_;
  std::ptrdiff_t kv_width_;
  std::unique_ptr<AttentionCache> cache_;
  std::vector<CapturedLayer> layers_;
};

}  // namespace llama
