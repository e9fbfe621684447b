// SPDX-License-Identifier: MIT
// Benchmarks hadamard_transform: hadamard/<type>/dim:<n> transforms the outputs of one token, 32 heads
// of n channels. scale/<type>/dim:<n> multiplies the same numbers by one: what touching them costs.
#include <kvtilt/core/half.hpp>
#include <kvtilt/quant/hadamard.hpp>

#include "support/caches.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

template <class T, class Change>
void run(benchmark::State& state, std::vector<T> heads, Change change) {
  for (auto _ : state) {
    change(heads);
    benchmark::ClobberMemory();
  }
  state.counters["ns_per_element"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(heads.size()) * 1e-9,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

template <class T>
void register_hadamard(const std::string& type, const std::vector<T>& heads, int dim) {
  benchmark::RegisterBenchmark(
      ("hadamard/" + type + "/dim:" + std::to_string(dim)).c_str(), [=](benchmark::State& state) {
        run(state, heads, [dim](std::vector<T>& data) {
          require(hadamard_transform(MutableTensorView(data.data(), 1, query_heads, dim)));
        });
      });
}

void register_scale(const std::vector<float>& heads, int dim) {
  benchmark::RegisterBenchmark(("scale/f32/dim:" + std::to_string(dim)).c_str(),
                               [=](benchmark::State& state) {
                                 float factor = 1.0f;
                                 benchmark::DoNotOptimize(factor);
                                 run(state, heads, [factor](std::vector<float>& data) {
                                   for (float& x : data) x *= factor;
                                 });
                               });
}

const bool registered = [] {
  for (const int dim : {64, 128, 256}) {
    const auto count = static_cast<std::size_t>(query_heads * dim);
    register_hadamard("f32", std::vector<float>(count, 1.0f), dim);
    register_hadamard("bf16", std::vector<BF16>(count, to_bf16(1.0f)), dim);
    register_hadamard("f16", std::vector<F16>(count, to_f16(1.0f)), dim);
    register_scale(std::vector<float>(count, 1.0f), dim);
  }
  return true;
}();

}  // namespace
}  // namespace kvtilt::bench
