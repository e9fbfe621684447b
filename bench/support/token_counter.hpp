// SPDX-License-Identifier: MIT
/// The counter that attention's benches share.
#pragma once

#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>

namespace kvtilt::bench {

/// Counts the time per cached token and kv head.
inline void count_tokens(benchmark::State& state, std::int64_t tokens, int heads = kv_heads) {
  state.counters["ns_per_token_head"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(tokens) * heads * 1e-9,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

}  // namespace kvtilt::bench
