// SPDX-License-Identifier: MIT
// An AttentionCache on kvtilt's KVCache: all calls that an engine has to make to kvtilt are in
// kvtilt_cache.cpp.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include "attention_cache.hpp"
#include "config.hpp"
#include "floats.hpp"
#include "gap.hpp"
#include "make_cache.hpp"

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

// Compiled in kernels.cpp alone: kernels are most of what a file with a KVCache takes to compile.
extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);

namespace llama {

/// The shape that kvtilt needs to know of the model.
kvtilt::CacheShape cache_shape(const ModelConfig& config);

class KvtiltCache final : public AttentionCache {
 public:
  /// Throws kvtilt's message if it refuses the plan, the settings or the shape.
  KvtiltCache(const ModelConfig& config, const kvtilt::Plan& plan, const CacheSettings& settings);

  void restart(int positions) override;
  void attend(int layer, int tokens, const float* queries, const float* turned, const float* keys,
              const float* values, float* out) override;
  [[nodiscard]] int draft_room() const override;
  void truncate(int length) override;
  void remove(int from, int to) override;
  [[nodiscard]] int removed() const override { return gap_.tokens; }
  [[nodiscard]] std::vector<std::byte> save() const override;
  void load(std::span<const std::byte> saved, int more) override;
  [[nodiscard]] int length() const override;
  [[nodiscard]] CacheUsage usage() const override;
  [[nodiscard]] double page_bits() const override { return cache_.page_bits(); }
  [[nodiscard]] bool touched_codes() const override { return touched_codes_; }

 private:
  [[nodiscard]] std::int64_t draft_room(int layer) const;
  void add_beginning(const kvtilt::LayerView& view, const kvtilt::TensorView& turned,
                     const kvtilt::OutputView& out);
  std::span<std::byte> workspace(std::size_t bytes);

  int layers_;
  int query_heads_;
  int kv_heads_;
  int head_dim_;
  int page_tokens_;
  kvtilt::AttendOptions options_;
  kvtilt::KVCache cache_;
  std::optional<kvtilt::SequenceId> sequence_;
  int positions_ = 0;  // tokens to have room for, besides removed ones
  Gap gap_;
  std::vector<std::byte> workspace_;
  Floats lse_;        // [tokens, query_heads]
  Floats beginning_;  // [tokens, query_heads, head_dim + 1]: outputs and their lse
  bool touched_codes_ = false;
};

}  // namespace llama
