// SPDX-License-Identifier: MIT
/// kvtilt as a node of a ggml graph that appends the newest token and attends. For ggml with backends.
#pragma once

#include "ggml_attention.hpp"
#include "support/caches.hpp"
#include "support/ggml_graph.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::bench {

/// Computes the node again and again; every time the sequence then has `tokens` tokens.
///
/// make  make(attention, context) adds the node
template <class Make>
void run_ggml_node(benchmark::State& state, KVCache& cache, SequenceId sequence,
                   std::int64_t tokens, int threads, const AttendOptions& options, float* out,
                   Make make) {
  require(cache.reserve(sequence, tokens));
  ThreadTeam team;
  GgmlAttention attention;
  attention.cache = &cache;
  attention.team = &team;
  attention.options = options;
  attention.rows = {{sequence, 0, 1}};
  std::vector<std::byte> memory = graph_memory();
  for (auto _ : state) {
    const Context context = make_context(memory);
    compute(context.get(), make(attention, context.get()), out, threads);
    require(attention.status());
    require(cache.truncate(sequence, tokens - 1));
  }
}

}  // namespace kvtilt::bench
