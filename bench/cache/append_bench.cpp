// SPDX-License-Identifier: MIT
// Benchmarks append: append/<recipe>/tokens:<n> appends n tokens at a time to a layer with the
// default tail, sealing included. ns_per_element counts keys and values of all kv heads.
#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <string>

namespace kvtilt::bench {
namespace {

void run_append(benchmark::State& state, const std::string& recipe, std::int64_t tokens) {
  constexpr std::int64_t capacity = 8192;
  const CacheShape shape = CacheShape::uniform(1, kv_heads, head_dim);
  const Recipe parsed = parse_recipe(recipe).value();
  KVCache cache =
      KVCache::create(shape, Plan::uniform(shape, parsed), cache_options(parsed, Tail::Default))
          .value();
  const SequenceId sequence = cache.open().value();
  require(cache.reserve(sequence, capacity));
  const Text text(tokens);
  std::int64_t length = 0;
  for (auto _ : state) {
    if (length + tokens > capacity) {
      require(cache.truncate(sequence, 0));
      length = 0;
    }
    require(cache.append(sequence, 0, text.keys(), text.values()));
    length += tokens;
  }
  state.counters["ns_per_element"] = benchmark::Counter(
      static_cast<double>(state.iterations() * tokens) * static_cast<double>(token_elements) * 1e-9,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.SetLabel(to_string(cache.isa()));
}

const bool registered = [] {
  for (const char* recipe : {"k16v16", "k8v8:g64,128", "k4v2:g64,128"})
    for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{512}})
      benchmark::RegisterBenchmark(
          ("append/" + std::string(recipe) + "/tokens:" + std::to_string(tokens)).c_str(),
          [recipe, tokens](benchmark::State& state) { run_append(state, recipe, tokens); });
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
