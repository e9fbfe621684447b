// SPDX-License-Identifier: MIT
// The baseline: an ordinary growing cache and plain float attention. It shares no code with kvtilt,
// so that agreement between the two is evidence.
#pragma once

#include "attention_cache.hpp"
#include "config.hpp"
#include "floats.hpp"
#include "gap.hpp"

#include <limits>
#include <vector>

namespace llama {

/// How keys and values are rounded when they enter the cache.
enum class CacheRounding {
  F16,   // rounded to 16-bit floats: the baseline of every comparison
  None,  // kept as they are: for comparing a model with another implementation
};

class FloatCache final : public AttentionCache {
 public:
  explicit FloatCache(const ModelConfig& config, CacheRounding rounding = CacheRounding::F16);

  void restart(int positions) override;
  void attend(int layer, int tokens, const float* queries, const float* turned, const float* keys,
              const float* values, float* out) override;
  [[nodiscard]] int draft_room() const override { return std::numeric_limits<int>::max(); }
  void truncate(int length) override;
  void remove(int from, int to) override;
  [[nodiscard]] int removed() const override { return gap_.tokens; }
  [[nodiscard]] int length() const override;
  /// Counts 2 bytes per number, as 16-bit storage would need, though they are stored as floats.
  [[nodiscard]] CacheUsage usage() const override;
  [[nodiscard]] double page_bits() const override { return 16; }
  [[nodiscard]] bool touched_codes() const override { return false; }

 private:
  struct Head {
    Floats keys;    // [tokens, head_dim], without those of the gap
    Floats values;  // [tokens, head_dim], likewise
  };
  struct Layer {
    std::vector<Head> heads;  // one per kv head
    int window = 0;
    int tokens = 0;  // in `heads`
  };

  void append(Layer& layer, int tokens, const float* keys, const float* values);
  void attend_one(const Layer& layer, int index, const float* queries, const float* turned,
                  float* out);

  int query_heads_;
  int kv_heads_;
  int head_dim_;
  CacheRounding rounding_;
  std::vector<Layer> layers_;
  Gap gap_;
  Floats scores_;  // [tokens]
};

}  // namespace llama
