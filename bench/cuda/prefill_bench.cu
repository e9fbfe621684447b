// SPDX-License-Identifier: MIT
//
// Benchmarks attention of prompt chunks on the GPU: microseconds per layer by graph replay, on
// random data, with enough sets of buffers in turn to exceed four times the L2. One line per row:
//
//   prefill/<recipe>/<query heads>x<kv heads>/batch:<b>/chunk:<n>/past:<n>  us  TFLOP/s
//
// TFLOP/s counts only products that the causal mask keeps. Rows of 16 bits are the baseline.
// Argument 1 is a JSON file to write, argument 2 a part of the names of the rows to run.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -Iinclude -o prefill_bench bench/cuda/prefill_bench.cu

#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include "layer_data.cuh"
#include "probe_support.cuh"
#include "replay.cuh"

#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr int head_dim = 128;

std::string filter;

struct Row {
  const char* recipe;
  int query_heads;
  int kv_heads;
  int batch;
  int chunk;
  std::int64_t past;
};

void fill_normals(DeviceArray<F16>& array, std::size_t elements, std::uint64_t seed) {
  fill_words<<<256, 256>>>(reinterpret_cast<std::byte*>(array.data()), 0, 1, 0,
                           static_cast<std::uint32_t>(elements / 2), 1, 0, seed);
}

void time_row(const Row& row, const std::string& name, Report& report);

void measure(const Row& row, Report& report) {
  const std::string name =
      "prefill/" + std::string(row.recipe) + "/" + std::to_string(row.query_heads) + "x" +
      std::to_string(row.kv_heads) + "/batch:" + std::to_string(row.batch) +
      "/chunk:" + std::to_string(row.chunk) + "/past:" + std::to_string(row.past);
  if (name.find(filter) == std::string::npos) return;
  report.row(name, [&] { time_row(row, name, report); });
}

void time_row(const Row& row, const std::string& name, Report& report) {
  const LayerShape shape{row.kv_heads, head_dim, head_dim, 0};
  const Recipe recipe = check(parse_recipe(row.recipe));
  const cuda::PrefillAttention attention = check(cuda::PrefillAttention::create(shape, recipe));
  const std::int64_t rows = std::int64_t{row.batch} * row.chunk;
  const auto elements = [&](int heads) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(heads) * head_dim;
  };
  const std::size_t asked = elements(row.query_heads);
  const std::size_t added = elements(row.kv_heads);
  const LayerData data(shape, {recipe},
                       std::vector<std::int64_t>(static_cast<std::size_t>(row.batch), row.past),
                       2 * (2 * asked + 2 * added));
  const std::size_t sets = static_cast<std::size_t>(data.sets());
  DeviceArray<F16> queries(sets * asked);
  DeviceArray<F16> keys(sets * added);
  DeviceArray<F16> values(sets * added);
  fill_normals(queries, sets * asked, 1);
  fill_normals(keys, sets * added, 2);
  fill_normals(values, sets * added, 3);
  DeviceArray<F16> out(sets * asked);
  const std::size_t workspace_bytes = attention.workspace_bytes();
  DeviceArray<std::byte> workspace(workspace_bytes);
  check(attention.prepare({workspace.data(), workspace_bytes}, nullptr));
  finish();
  const double seconds = replayed_seconds(std::max(4, data.sets()), [&](int i,
                                                                        cudaStream_t stream) {
    const std::size_t set = static_cast<std::size_t>(i) % sets;
    check(attention.attend_prefill(data.layer(), data.batch(i), nullptr,
                                   {queries.data() + set * asked, rows, row.query_heads, head_dim},
                                   {keys.data() + set * added, rows, row.kv_heads, head_dim},
                                   {values.data() + set * added, rows, row.kv_heads, head_dim},
                                   {out.data() + set * asked, rows, row.query_heads, head_dim},
                                   nullptr, {}, {workspace.data(), workspace_bytes}, stream));
  });
  const double pairs = static_cast<double>(row.chunk) *
                       (static_cast<double>(row.past) + (static_cast<double>(row.chunk) + 1) / 2);
  report.add(name + "/time", seconds * 1e6, "us");
  report.add(name + "/rate", 4e-12 * row.batch * row.query_heads * head_dim * pairs / seconds,
             "TFLOP/s");
}

}  // namespace
}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  using namespace kvtilt::bench;
  Report report(argc, argv);
  if (argc > 2) filter = argv[2];
  // Rows with a target first.
  for (const char* recipe : {"k16v16", "k4v2"}) measure({recipe, 32, 8, 1, 512, 32768}, report);
  for (const char* recipe : {"k8v4", "k4v4", "k3v2", "k8tv8"})
    measure({recipe, 32, 8, 1, 512, 32768}, report);
  for (const char* recipe : {"k16v16", "k4v2", "k8v4", "k4v4", "k3v2", "k8tv8"}) {
    measure({recipe, 32, 8, 1, 2048, 32768}, report);
    measure({recipe, 32, 8, 1, 512, 8192}, report);
    measure({recipe, 32, 8, 1, 4096, 0}, report);
    measure({recipe, 32, 8, 8, 64, 32768}, report);
  }
  for (const char* recipe : {"k16v16", "k4v2"}) {
    measure({recipe, 64, 8, 1, 512, 32768}, report);
    measure({recipe, 32, 32, 1, 512, 32768}, report);
  }
  return report.exit_code();
}
