// SPDX-License-Identifier: MIT
/// Random programs for a cache: their steps, and how they are drawn from a seed.
#pragma once

#include <kvtilt/cache/options.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/quant/plan.hpp>

#include "support/caches.hpp"
#include "support/random.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

namespace kvtilt::test {

struct Step {
  enum Kind {
    Open,
    Reserve,
    Append,
    Truncate,
    Repair,
    Fork,
    Remove,
    Save,
    Close,
    Attend,
    Merge,
    Prefill
  };
  Kind kind;
  int which;  ///< picks a sequence
  int layer;
  int amount;
  std::uint64_t seed;  ///< of the step's other choices
};

inline std::string to_string(const Step& step) {
  constexpr const char* names[] = {"open",   "reserve", "append", "truncate", "repair", "fork",
                                   "remove", "save",    "close",  "attend",   "merge",  "prefill"};
  return std::string(names[step.kind]) + " sequence " + std::to_string(step.which) + ", layer " +
         std::to_string(step.layer) + ", amount " + std::to_string(step.amount);
}

/// Shape, plan and options of the cache that a program runs on.
struct ProgramSetup {
  CacheShape shape;
  Plan plan;
  CacheOptions options;
  std::size_t page_memory = 0;  ///< bytes given by the caller; 0: all from the allocator
  int stretch = 1;              ///< factor of all amounts: attention is split over long sequences

  explicit ProgramSetup(Random& random) {
    options.page_tokens = 32 << random.below(2);
    options.sink_tokens = pick(random, {0, 1, 4, 17});
    options.recent_tokens = pick(random, {0, 1, 20, 64, 90});
    options.max_sequences = 5;
    if (random.chance(3))
      options.max_bytes = static_cast<std::size_t>(random.between(10, 600)) * 1000;
    if (random.chance(5)) page_memory = static_cast<std::size_t>(random.between(10, 600)) * 1000;
    const std::vector<Isa> isas = usable_isas();
    options.isa = isas[static_cast<std::size_t>(random.below(static_cast<int>(isas.size())))];
    if (random.chance(15)) {
      stretch = 5;
      options.page_tokens = 32;
    }
    const int layers = stretch > 1 ? 1 : random.between(1, 3);
    for (int layer = 0; layer < layers; ++layer) add_layer(random, layer);
  }

  /// Whether there may be too little memory for what a program reserves.
  [[nodiscard]] bool scarce() const { return options.max_bytes > 0 || page_memory > 0; }

 private:
  void add_layer(Random& random, int layer) {
    const int widest = stretch > 1 ? 1 : 4;
    LayerShape own{random.between(1, 2), 8 * random.between(1, widest),
                   8 * random.between(1, widest)};
    if (random.chance(3)) own.window = random.between(1, 150);
    own.keep_sinks = random.chance(2);
    own.values_in_keys = own.value_dim <= own.key_dim && random.chance(3);
    if (layer > 0 && random.chance(6)) own = {};  // keeps no cache
    shape.layers.push_back(own);
    std::vector<Recipe> recipes;
    for (int head = 0; head < std::max(1, own.kv_heads); ++head)
      recipes.push_back({random_format(random, std::max(8, own.key_dim), options.page_tokens),
                         own.values_in_keys ? in_keys
                                            : random_format(random, std::max(8, own.value_dim),
                                                            options.page_tokens)});
    plan.recipes.push_back(recipes);
  }
};

inline std::vector<Step> random_program(std::uint64_t seed, int count) {
  Random random(seed ^ 0x5eed);
  std::vector<Step> steps = {{Step::Open, 0, 0, 400, random.next()}};
  constexpr Step::Kind kinds[] = {
      Step::Open,   Step::Reserve, Step::Reserve, Step::Append, Step::Append,   Step::Append,
      Step::Append, Step::Append,  Step::Append,  Step::Append, Step::Truncate, Step::Truncate,
      Step::Repair, Step::Fork,    Step::Remove,  Step::Save,   Step::Close,    Step::Attend,
      Step::Attend, Step::Merge,   Step::Prefill};
  while (static_cast<int>(steps.size()) < count) {
    const Step::Kind kind = kinds[random.below(static_cast<int>(std::size(kinds)))];
    int amount = random.between(0, 40);
    if (kind == Step::Open || kind == Step::Reserve || kind == Step::Fork || kind == Step::Save)
      amount = random.between(0, 500);
    if (kind == Step::Append && random.chance(3)) amount = random.between(0, 200);
    const Step step{kind, random.below(5), random.below(6), amount, random.next()};
    steps.push_back(step);
    if (kind == Step::Append && random.chance(2))  // often, all layers go in step
      for (int layer = step.layer + 1; layer < step.layer + 3; ++layer)
        steps.push_back({kind, step.which, layer, amount, random.next()});
  }
  return steps;
}

}  // namespace kvtilt::test
