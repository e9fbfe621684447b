// SPDX-License-Identifier: MIT
// Benchmarks unpack: unpack/<recipe>/tokens:<n> decodes n tokens of a layer to float rows.
// write/tokens:<n> sets the same rows to one value: the upper limit for a kernel that writes them.
// ns_per_element counts keys and values of all kv heads.
#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr std::int64_t tokens = 512;

/// Float rows for keys and values.
struct FloatRows {
  std::vector<float> keys = std::vector<float>(tokens * token_elements / 2);
  std::vector<float> values = std::vector<float>(tokens * token_elements / 2);
};

template <class Write>
void run(benchmark::State& state, Write write) {
  FloatRows rows;
  for (auto _ : state) {
    write(rows);
    benchmark::ClobberMemory();
  }
  state.counters["ns_per_element"] = benchmark::Counter(
      static_cast<double>(state.iterations() * tokens) * static_cast<double>(token_elements) * 1e-9,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void run_unpack(benchmark::State& state, const std::string& recipe) {
  const FilledCache& filled = filled_cache(recipe, tokens);
  run(state, [&](FloatRows& rows) {
    require(filled.cache.unpack(filled.sequence, 0, 0,
                                MutableTensorView(rows.keys.data(), tokens, kv_heads, head_dim),
                                MutableTensorView(rows.values.data(), tokens, kv_heads, head_dim)));
  });
  state.counters["bits"] = filled.bits();
  state.SetLabel(to_string(filled.cache.isa()));
}

const bool registered = [] {
  for (const char* recipe : {"k16v16", "k8v8:g64,128", "k4v2:g64,128", "k4tv4:g128,128"})
    benchmark::RegisterBenchmark(
        ("unpack/" + std::string(recipe) + "/tokens:" + std::to_string(tokens)).c_str(),
        [recipe](benchmark::State& state) { run_unpack(state, recipe); });
  benchmark::RegisterBenchmark(("write/rows/tokens:" + std::to_string(tokens)).c_str(),
                               [](benchmark::State& state) {
                                 run(state, [](FloatRows& rows) {
                                   std::fill(rows.keys.begin(), rows.keys.end(), 1.0f);
                                   std::fill(rows.values.begin(), rows.values.end(), 1.0f);
                                 });
                               });
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
