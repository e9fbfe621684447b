// SPDX-License-Identifier: MIT
/// Random programs for a device cache: their steps, and how they are drawn from a seed.
#pragma once

#include <kvtilt/cuda/cache/options.hpp>

#include "support/caches.hpp"
#include "support/random.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

namespace kvtilt::test {

struct CacheStep {
  enum Kind {
    Open,
    Reserve,
    Append,         ///< to one layer of a sequence
    AppendBatch,    ///< to one layer, or all, of some sequences
    Untold,         ///< likewise, but the host is told later or never
    Truncate,       ///< one sequence
    TruncateBatch,  ///< to lengths in device memory; the host is told at once, later or never
    Repair,         ///< truncates layers to equal lengths after Append
    Fork,
    Save,
    Remove,
    Close,
    Refresh,
    Unpack,
    Attend,
    Prefill,
    Replay,
    Tables,
    Hostile,
    Wild  ///< calls that the device may refuse when the host has taken them
  };
  Kind kind;
  int which;  ///< picks a sequence
  int layer;
  int amount;
  std::uint64_t seed;  ///< of the step's other choices
};

inline std::string to_string(const CacheStep& step) {
  constexpr const char* names[] = {
      "open",   "reserve", "append", "append batch", "untold",  "truncate", "truncate batch",
      "repair", "fork",    "save",   "remove",       "close",   "refresh",  "unpack",
      "attend", "prefill", "replay", "tables",       "hostile", "wild"};
  return std::string(names[step.kind]) + " sequence " + std::to_string(step.which) + ", layer " +
         std::to_string(step.layer) + ", amount " + std::to_string(step.amount);
}

/// Shape, plan and options of the cache that a program runs on.
struct CacheProgramSetup {
  CacheShape shape;
  Plan plan;
  cuda::CacheOptions options;
  int misplaced =
      -1;  ///< bytes that the caller's memory starts behind a multiple of 256; < 0: none

  explicit CacheProgramSetup(Random& random) {
    options.page_tokens = random.chance(6) ? 128 : pick(random, {32, 32, 64});
    options.sink_tokens = pick(random, {0, 1, 4, 17, 40});
    options.recent_tokens = pick(random, {0, 1, 20, 64, 90});
    options.max_sequences = random.between(2, 5);
    options.max_sequence_tokens = random.between(300, 900);
    options.token_capacity =
        random.chance(2) ? random.between(options.page_tokens, 1200) : 5 * 900 + 128;
    if (random.chance(5)) misplaced = random.below(256);
    const int layers = random.between(1, 3);
    for (int layer = 0; layer < layers; ++layer) add_layer(random, layer);
  }

 private:
  void add_layer(Random& random, int layer) {
    LayerShape own{random.between(1, 2), 16 * random.between(1, 2), 16 * random.between(1, 2)};
    if (random.chance(2))
      own.key_dim = own.value_dim = 64;  // the dims with attention kernels
    else
      own.values_in_keys = own.value_dim <= own.key_dim && random.chance(2);
    if (random.chance(2)) own.window = random.between(1, 200);
    own.keep_sinks = random.chance(2);
    if (layer > 0 && random.chance(6)) own = {};  // keeps no cache
    std::vector<Recipe> recipes;
    const int heads = std::max(1, own.kv_heads);
    while (static_cast<int>(recipes.size()) < heads) {
      Recipe recipe{random_format(random, std::max(8, own.key_dim), options.page_tokens),
                    random_format(random, std::max(8, own.value_dim), options.page_tokens)};
      if (random.chance(3)) recipe = presets::k4v2;
      if (own.values_in_keys) recipe.value = in_keys;
      if (!recipes.empty() && random.chance(2)) recipe = recipes[0];
      if (own.kv_heads > 0 && !cuda::supports(own, recipe, options.page_tokens).ok()) continue;
      recipes.push_back(recipe);
    }
    shape.layers.push_back(own);
    plan.recipes.push_back(recipes);
  }
};

inline std::vector<CacheStep> random_cache_program(std::uint64_t seed, int count) {
  using S = CacheStep;
  Random random(seed ^ 0x5eed);
  std::vector<S> steps = {{S::Open, 0, 0, 500, random.next()}, {S::Open, 0, 0, 300, random.next()}};
  constexpr S::Kind kinds[] = {S::Open,          S::Reserve,     S::Reserve,     S::Append,
                               S::Append,        S::AppendBatch, S::AppendBatch, S::AppendBatch,
                               S::AppendBatch,   S::AppendBatch, S::AppendBatch, S::Untold,
                               S::Untold,        S::Truncate,    S::Truncate,    S::TruncateBatch,
                               S::TruncateBatch, S::Repair,      S::Fork,        S::Fork,
                               S::Save,          S::Remove,      S::Close,       S::Refresh,
                               S::Unpack,        S::Attend,      S::Prefill,     S::Replay,
                               S::Tables,        S::Hostile,     S::Wild};
  while (static_cast<int>(steps.size()) < count) {
    const S::Kind kind = kinds[random.below(static_cast<int>(std::size(kinds)))];
    int amount = random.between(0, 40);
    if (kind == S::Open || kind == S::Reserve || kind == S::Fork || kind == S::Save)
      amount = random.between(0, 700);
    if ((kind == S::Append || kind == S::AppendBatch || kind == S::Untold) && random.chance(3))
      amount = random.between(0, 250);
    if (kind == S::AppendBatch && random.chance(3)) amount = random.between(0, 2);
    if (kind == S::Prefill && random.chance(2)) amount = random.between(0, 120);
    steps.push_back({kind, random.below(5), random.below(6), amount, random.next()});
  }
  return steps;
}

}  // namespace kvtilt::test
