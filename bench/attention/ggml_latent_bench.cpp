// SPDX-License-Identifier: MIT
// Benchmarks ggml's attention on the latents of latent_bench.cpp, as llama.cpp runs multi-head latent
// attention on a CPU: ggml_latent/<type>/tokens:<n>/heads:<h>, with values as a view of the keys.
// ggml_latent_node/<recipe>/... is kvtilt as a node of a ggml graph, which appends the newest token and
// attends.
#include "support/ggml_graph.hpp"
#include "support/latents.hpp"
#include "support/token_counter.hpp"

#include <benchmark/benchmark.h>
#if KVTILT_GGML_HAS_BACKENDS
#include "support/ggml_node.hpp"
#endif

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

/// The bytes of `tokens` rows, each of latent_dim channels.
std::vector<std::byte> quantized(ggml_type type, std::int64_t tokens) {
  const std::size_t row_bytes = ggml_row_size(type, latent_dim);
  std::vector<std::byte> rows(static_cast<std::size_t>(tokens) * row_bytes);
  for (std::int64_t token = 0; token < tokens; ++token)
    quantize_row(type, latents().data() + token % latent_period * latent_dim, latent_dim,
                 rows.data() + static_cast<std::size_t>(token) * row_bytes);
  return rows;
}

void run(benchmark::State& state, ggml_type type, std::int64_t tokens, int heads) {
  std::vector<std::byte> rows = quantized(type, tokens);
  std::vector<float> queries = latent_queries(heads);
  std::vector<F16> mask(static_cast<std::size_t>(64 * tokens));
  std::vector<float> out(static_cast<std::size_t>(heads * latent_rank));
  std::vector<std::byte> memory = graph_memory();
  for (auto _ : state) {
    const Context context = make_context(memory);
    ggml_tensor* const keys = ggml_new_tensor_3d(context.get(), type, latent_dim, tokens, 1);
    keys->data = rows.data();
    ggml_tensor* const values =
        ggml_view_3d(context.get(), keys, latent_rank, tokens, 1, keys->nb[1], keys->nb[2], 0);
    values->data = rows.data();
    compute_attention(context.get(),
                      float_tensor(context.get(), queries.data(), latent_dim, heads, 1), keys,
                      values, mask.data(), latent_scale, out.data(), 1);
  }
  state.counters["bits"] = 8.0 * static_cast<double>(ggml_row_size(type, latent_dim)) / latent_dim;
  count_tokens(state, tokens, 1);
  state.counters["error"] = relative_error(out, latent_reference(heads, tokens));
}

#if KVTILT_GGML_HAS_BACKENDS
void run_node(benchmark::State& state, const std::string& recipe, std::int64_t tokens, int heads) {
  FilledLatents& filled = filled_latents(recipe, tokens - 1, LatentValues::InKeys);
  const std::vector<float> queries = latent_queries(heads);
  const float* newest = latents().data() + (tokens - 1) % latent_period * latent_dim;
  std::vector<float> out(static_cast<std::size_t>(heads * latent_rank));
  AttendOptions options;
  options.scale = latent_scale;
  run_ggml_node(state, filled.cache, filled.sequence, tokens, 1, options, out.data(),
                [&](GgmlAttention& attention, ggml_context* context) {
                  return attention.latent_node(
                      context, float_tensor(context, queries.data(), latent_dim, heads, 1),
                      float_tensor(context, newest, latent_dim, 1, 1), latent_rank);
                });
  state.counters["bits"] = filled.cache.memory(filled.sequence)->effective_bits();
  count_tokens(state, tokens, 1);
  state.counters["error"] = relative_error(out, latent_reference(heads, tokens));
}
#endif

const bool registered = [] {
#if KVTILT_GGML_HAS_BACKENDS
  for (const char* recipe : {"k16", "k8", "k4"})
    for (const int heads : {16, 128})
      benchmark::RegisterBenchmark(
          ("ggml_latent_node/" + std::string(recipe) +
           "/tokens:16384/heads:" + std::to_string(heads))
              .c_str(),
          [=](benchmark::State& state) { run_node(state, recipe, 16384, heads); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
#endif
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
    for (const int heads : {16, 128})
      benchmark::RegisterBenchmark(("ggml_latent/" + std::string(ggml_type_name(type)) +
                                    "/tokens:16384/heads:" + std::to_string(heads))
                                       .c_str(),
                                   [=](benchmark::State& state) { run(state, type, 16384, heads); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
