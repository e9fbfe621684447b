// SPDX-License-Identifier: MIT
// Benchmarks decode attention: attend/<recipe>/tokens:<n>/threads:<t> is one query token of 32
// heads over a cache of n tokens; read/... reads the same bytes and does nothing else.
#include "support/caches.hpp"
#include "support/read.hpp"
#include "support/token_counter.hpp"
#include "thread_pool.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

struct Case {
  std::string recipe;
  std::int64_t tokens;
  int threads = 1;
  Tail tail = Tail::None;

  [[nodiscard]] std::string name(const char* verb) const {
    return std::string(verb) + "/" + recipe + "/tokens:" + std::to_string(tokens) +
           "/threads:" + std::to_string(threads) + (tail == Tail::Default ? "/tail:128" : "");
  }
};

ThreadPool& pool(int threads) {
  static ThreadPool one(1);
  static ThreadPool two(2);
  return threads == 1 ? one : two;
}

void count_time(benchmark::State& state, const Case& c, std::size_t bytes) {
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  count_tokens(state, c.tokens);
}

void attend_once(const LayerView& view, const std::vector<float>& queries, std::vector<float>& out,
                 const AttendOptions& options, std::vector<std::byte>& workspace,
                 const ParallelFor& parallel) {
  const AttendRequest request{view, TensorView(queries.data(), 1, query_heads, head_dim),
                              OutputView(out.data(), 1, query_heads, head_dim), options};
  workspace.resize(attend_workspace_bytes({&request, 1}, parallel.workers));
  require(attend({&request, 1}, workspace, parallel));
}

void run_attend(benchmark::State& state, const Case& c) {
  FilledCache& filled = filled_cache(c.recipe, c.tokens, c.tail);
  const LayerView view = filled.view();
  const std::vector<float> queries = make_queries(1);
  std::vector<float> out(queries.size());
  std::vector<std::byte> workspace;
  const ParallelFor parallel = pool(c.threads).parallel_for();
  for (auto _ : state) attend_once(view, queries, out, {}, workspace, parallel);
  count_time(state, c, stored_bytes(view));
  state.counters["bits"] = filled.bits();
  state.counters["error"] = relative_error(out, reference_output(c.tokens));
  AttendOptions exact;
  exact.arithmetic = Arithmetic::Exact;
  std::vector<float> exact_out(out.size());
  attend_once(view, queries, exact_out, exact, workspace, parallel);
  state.counters["arithmetic_error"] =
      relative_error(out, std::vector<double>(exact_out.begin(), exact_out.end()));
  state.SetLabel(kvtilt::to_string(view.kernels->isa));
}

struct Reading {
  const LayerView* view;
  ReadWay way;
  int workers;
};

void read_all(const Reading& reading, const ParallelFor& parallel) {
  Reading shared = reading;
  parallel(
      [](void* argument, int worker) {
        const Reading& all = *static_cast<const Reading*>(argument);
        std::uint64_t sum = read_pages(*all.view, all.way, worker, all.workers);
        benchmark::DoNotOptimize(sum);
      },
      &shared);
}

ReadWay fastest_way(const LayerView& view, const ParallelFor& parallel) {
  ReadWay best = ReadWay::Stream;
  double best_seconds = 1e9;
  for (int round = 0; round < 5; ++round)
    for (const ReadWay way : all_read_ways) {
      const auto start = std::chrono::steady_clock::now();
      read_all({&view, way, parallel.workers}, parallel);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      if (round > 0 && took.count() < best_seconds) {
        best_seconds = took.count();
        best = way;
      }
    }
  return best;
}

void run_read(benchmark::State& state, const Case& c) {
  const LayerView view = filled_cache(c.recipe, c.tokens, c.tail).view();
  const ParallelFor parallel = pool(c.threads).parallel_for();
  const ReadWay way = fastest_way(view, parallel);
  for (auto _ : state) read_all({&view, way, parallel.workers}, parallel);
  count_time(state, c, stored_bytes(view));
  state.SetLabel(to_string(way));
}

void register_case(const Case& c) {
  for (const bool read : {false, true}) {
    benchmark::RegisterBenchmark(
        c.name(read ? "read" : "attend").c_str(),
        [c, read](benchmark::State& state) { read ? run_read(state, c) : run_attend(state, c); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

const bool registered = [] {
  const char* const recipes[] = {
      "k16v16",       "k8v8:g64,128", "k4v2:g64,128",   "k4v2:g128,128",  "k4v2:g64,64",
      "k4v2:g32,32",  "k4v4:g64,128", "k3v2:g64,128",   "k2v2:g64,128",   "k8v4:g64,128",
      "k6v4:g64,128", "k5v5:g64,128", "k4tv4:g128,128", "k8tv8:g128,128", "k4v4:g16,16"};
  for (const char* recipe : recipes) register_case({recipe, 32768});
  for (const std::int64_t tokens : {std::int64_t{1024}, std::int64_t{4096}})
    for (const char* recipe : {"k16v16", "k8v8:g64,128", "k4v2:g64,128"})
      register_case({recipe, tokens});
  for (const std::int64_t tokens : {std::int64_t{4096}, std::int64_t{32768}})
    for (const char* recipe : {"k16v16", "k4v2:g64,128"}) register_case({recipe, tokens, 2});
  register_case({"k4v2:g64,128", 32768, 1, Tail::Default});
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
