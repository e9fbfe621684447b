// SPDX-License-Identifier: MIT
// Benchmarks prefill: in prefill/<recipe>/queries:512/tokens:4096 the last 512 of 4096 tokens
// attend causally to all; the earlier 3584 are in the cache. gflops counts two operations per
// product.
#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr std::int64_t chunk = 512;
constexpr std::int64_t past = 4096 - chunk;

void run_prefill(benchmark::State& state, const std::string& recipe) {
  FilledCache& filled = filled_cache(recipe, past);
  const LayerView view = filled.view();
  const Text text(chunk);
  const std::vector<float> queries = make_queries(chunk);
  std::vector<float> out(queries.size());
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(view, chunk));
  for (auto _ : state)
    require(attend_prefill(view, TensorView(queries.data(), chunk, query_heads, head_dim),
                           text.keys(), text.values(),
                           OutputView(out.data(), chunk, query_heads, head_dim), {}, workspace));
  const double seen = static_cast<double>(chunk) * static_cast<double>(past + (chunk + 1) / 2);
  state.counters["gflops"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * seen * query_heads * head_dim * 2 * 2 * 1e-9,
      benchmark::Counter::kIsRate);
  state.SetLabel(to_string(view.kernels->isa));
}

const bool registered = [] {
  for (const char* recipe : {"k16v16", "k8v8:g64,128", "k4v2:g64,128"})
    benchmark::RegisterBenchmark(
        ("prefill/" + std::string(recipe) + "/queries:512/tokens:4096").c_str(),
        [recipe](benchmark::State& state) { run_prefill(state, recipe); })
        ->Unit(benchmark::kMillisecond);
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
