// SPDX-License-Identifier: MIT
// Benchmarks saving: save/<recipe>/tokens:<n> writes a layer of n tokens to bytes, load/... reads
// them back into a sequence. copy/<recipe>/... copies as many bytes: the upper limit, except that
// it makes no checksum. ns_per_element counts keys and values of all kv heads.
#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr std::int64_t tokens = 8192;

void report(benchmark::State& state, const FilledCache& filled) {
  state.counters["ns_per_element"] = benchmark::Counter(
      static_cast<double>(state.iterations() * tokens) * static_cast<double>(token_elements) * 1e-9,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.counters["bits"] = filled.bits();
}

std::vector<std::byte> saved(FilledCache& filled) {
  std::vector<std::byte> image(filled.cache.saved_bytes(filled.sequence).value());
  require(filled.cache.save(filled.sequence, image));
  return image;
}

void run_save(benchmark::State& state, const std::string& recipe) {
  FilledCache& filled = filled_cache(recipe, tokens);
  std::vector<std::byte> image = saved(filled);
  for (auto _ : state) {
    require(filled.cache.save(filled.sequence, image));
    benchmark::ClobberMemory();
  }
  report(state, filled);
}

void run_load(benchmark::State& state, const std::string& recipe) {
  FilledCache& filled = filled_cache(recipe, tokens);
  const std::vector<std::byte> image = saved(filled);
  for (auto _ : state) {
    const Result<SequenceId> loaded = filled.cache.load(image);
    require(loaded.status());
    require(filled.cache.close(*loaded));
  }
  report(state, filled);
}

void run_copy(benchmark::State& state, const std::string& recipe) {
  FilledCache& filled = filled_cache(recipe, tokens);
  const std::vector<std::byte> image = saved(filled);
  std::vector<std::byte> to(image.size());
  for (auto _ : state) {
    std::memcpy(to.data(), image.data(), image.size());
    benchmark::ClobberMemory();
  }
  report(state, filled);
}

const bool registered = [] {
  for (const char* recipe : {"k16v16", "k8v8:g64,128", "k4v2:g64,128"}) {
    const std::string rest = "/" + std::string(recipe) + "/tokens:" + std::to_string(tokens);
    const auto add = [&](const char* verb, auto run) {
      benchmark::RegisterBenchmark((verb + rest).c_str(),
                                   [=](benchmark::State& state) { run(state, recipe); });
    };
    add("save", run_save);
    add("load", run_load);
    add("copy", run_copy);
  }
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
