// SPDX-License-Identifier: MIT
// Benchmarks decode attention on latents of 512 + 64 channels (multi-head latent attention):
// latent/<recipe>/tokens:<n>/heads:<h> is one query token of h heads, values in the keys;
// latent_apart/... stores values a second time, in the same format.
#include "support/latents.hpp"
#include "support/token_counter.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

struct Case {
  std::string recipe;
  std::int64_t tokens;
  int heads;
  bool apart;

  [[nodiscard]] std::string name() const {
    return (apart ? "latent_apart/" : "latent/") + recipe + "/tokens:" + std::to_string(tokens) +
           "/heads:" + std::to_string(heads);
  }
};

void run(benchmark::State& state, const Case& c) {
  const FilledLatents& filled =
      filled_latents(c.recipe, c.tokens, c.apart ? LatentValues::Apart : LatentValues::InKeys);
  const LayerView view = filled.cache.view(filled.sequence, 0).value();
  const std::vector<float> queries = latent_queries(c.heads);
  std::vector<float> out(static_cast<std::size_t>(c.heads) * latent_rank);
  std::vector<std::byte> workspace(attend_workspace_bytes(view));
  AttendOptions options;
  options.scale = latent_scale;
  for (auto _ : state)
    require(attend(view, TensorView(queries.data(), 1, c.heads, latent_dim),
                   OutputView(out.data(), 1, c.heads, latent_rank), options, workspace));
  state.counters["bits"] = filled.cache.memory(filled.sequence)->effective_bits();
  count_tokens(state, c.tokens, 1);
  state.counters["error"] = relative_error(out, latent_reference(c.heads, c.tokens));
}

const bool registered = [] {
  for (const int heads : {16, 128})
    for (const char* recipe : {"k16", "k8", "k6", "k4", "k2"})
      for (const bool apart : {false, true}) {
        const Case c{recipe, 16384, heads, apart};
        benchmark::RegisterBenchmark(c.name().c_str(),
                                     [c](benchmark::State& state) { run(state, c); })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
