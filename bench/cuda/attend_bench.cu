// SPDX-License-Identifier: MIT
//
// Decode attention on the GPU: microseconds per layer by graph replay, random data, pages anywhere
// in memory, buffers rotated beyond four times the L2. One line a row:
//
//   attend/<recipe>/<query heads>x<kv heads>/batch:<b>/tokens:<n>  us  GB/s of its own bytes  %
//
// where % is of 4.8 TB/s, the memory bandwidth an H200 is sold with. JSON goes to argument 1;
// argument 2 is a part of the rows' names, or all, which adds rows.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -Iinclude -o attend_bench bench/cuda/attend_bench.cu

#include <kvtilt/cuda/attention/attend.cuh>

#include "layer_data.cuh"
#include "probe_support.cuh"
#include "replay.cuh"

#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr int head_dim = 128;
constexpr double sold_bandwidth = 4.8e12;

struct Row {
  const char* recipe;
  int query_heads;
  int kv_heads;
  std::vector<std::int64_t> lengths;
  std::string shape;
};

/// Names with a + between them: heads take turns.
std::vector<Recipe> recipes_of(const Row& row) {
  std::vector<Recipe> named;
  std::istringstream names(row.recipe);
  for (std::string name; std::getline(names, name, '+');)
    named.push_back(check(parse_recipe(name)));
  if (named.size() == 1) return named;
  std::vector<Recipe> recipes;
  for (int head = 0; head < row.kv_heads; ++head)
    recipes.push_back(named[static_cast<std::size_t>(head) % named.size()]);
  return recipes;
}

/// Rows whose name lacks it are left out.
std::string filter;

void measure(const Row& row, Report& report, const cuda::AttendTuning& tuning = {}) {
  std::string name = "attend/" + std::string(row.recipe) + "/" + std::to_string(row.query_heads) +
                     "x" + std::to_string(row.kv_heads) + "/" + row.shape;
  if (name.find(filter) == std::string::npos) return;
  if (tuning.blocks > 0)
    name += "/tuning:" + std::to_string(tuning.blocks) + "x" + std::to_string(tuning.stages);
  const LayerShape shape{row.kv_heads, head_dim, head_dim, 0};
  const std::vector<Recipe> recipes = recipes_of(row);
  Result<cuda::Attention> attention = cuda::Attention::create(shape, recipes, 64, tuning);
  if (!attention && (tuning.blocks > 0 || tuning.stages > 0)) return;  // does not fit
  check(attention.status());
  std::vector<std::unique_ptr<LayerData>> sets;
  std::size_t bytes = 0;
  while (sets.empty() || (bytes < 256u << 20 && sets.size() < 64)) {
    sets.push_back(std::make_unique<LayerData>(shape, recipes, row.lengths, 77 + sets.size()));
    bytes += sets.back()->bytes();
  }
  const int sequences = static_cast<int>(row.lengths.size());
  const std::size_t elements =
      static_cast<std::size_t>(sequences) * static_cast<std::size_t>(row.query_heads) * head_dim;
  DeviceArray<F16> queries(elements);
  DeviceArray<F16> out(elements);
  fill_words<<<256, 256>>>(reinterpret_cast<std::byte*>(queries.data()), 0, 1, 0,
                           static_cast<std::uint32_t>(elements / 2), 1, 0, 5);
  const std::size_t workspace_bytes = attention->workspace_bytes(sequences, 1, row.query_heads);
  DeviceArray<std::byte> workspace(workspace_bytes);
  check(attention->prepare({workspace.data(), workspace_bytes}, nullptr));
  finish();
  const TensorView query_view(queries.data(), sequences, row.query_heads, head_dim);
  const MutableTensorView out_view(out.data(), sequences, row.query_heads, head_dim);
  const int launches = std::max(static_cast<int>(sets.size()), bytes < 100u << 20 ? 16 : 4);
  const double seconds = replayed_seconds(launches, [&](int i, cudaStream_t stream) {
    const LayerData& set = *sets[static_cast<std::size_t>(i) % sets.size()];
    check(attention->attend(set.layer(), set.batch(), query_view, out_view, nullptr, {},
                            {workspace.data(), workspace_bytes}, stream));
  });
  const double rate = static_cast<double>(sets[0]->bytes()) / seconds;
  report.add(name + "/time", seconds * 1e6, "us");
  report.add(name + "/rate", rate * 1e-9, "GB/s");
  report.add(name + "/of_4.8TB/s", 100 * rate / sold_bandwidth, "%");
  report.add(name + "/blocks", attention->blocks(), "blocks");
  report.add(name + "/stages", attention->stages(), "stages");
}

Row uniform_row(const char* recipe, int query_heads, int kv_heads, int batch, std::int64_t tokens) {
  return {recipe, query_heads, kv_heads,
          std::vector<std::int64_t>(static_cast<std::size_t>(batch), tokens),
          "batch:" + std::to_string(batch) + "/tokens:" + std::to_string(tokens)};
}

}  // namespace
}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  using namespace kvtilt::bench;
  Report report;
  const char* recipes[] = {"k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k2v2"};
  const bool all = argc > 2 && std::strcmp(argv[2], "all") == 0;
  if (argc > 2 && !all) filter = argv[2];
  for (const char* recipe : recipes) {
    measure(uniform_row(recipe, 32, 8, 16, 32768), report);
    measure(uniform_row(recipe, 32, 8, 1, 32768), report);
    measure(uniform_row(recipe, 32, 8, 1, 1024), report);
  }
  for (const char* recipe : {"k3v2", "k4v4+k3v2", "k8tv8", "k4tv4", "k4v2c", "k6v4", "k5v5",
                             "kivi2"}) {  // from k6v4 on: generic
    measure(uniform_row(recipe, 32, 8, 16, 32768), report);
    measure(uniform_row(recipe, 32, 8, 1, 32768), report);
  }
  for (const char* recipe : {"k16v16", "k4v2"}) {
    measure({recipe,
             32,
             8,
             {100, 120000, 9000, 300, 64000, 7777, 1200, 30000, 500, 2000, 18000, 33, 5000, 90000,
              700, 12000},
             "batch:16/tokens:ragged"},
            report);
    measure(uniform_row(recipe, 64, 8, 16, 32768), report);
    measure(uniform_row(recipe, 32, 32, 4, 32768), report);
    measure(uniform_row(recipe, 8, 1, 1, 131072), report);  // of eight GPUs that share the heads
    if (!all) continue;
    for (const int batch : {1, 4, 16, 64})
      for (const std::int64_t tokens : {1024, 8192, 32768, 131072})
        if (batch * tokens <= 64 * 32768)
          measure(uniform_row(recipe, 32, 8, batch, tokens), report);
  }
  for (const char* recipe : recipes)
    for (const int blocks : {1, 2, 3})
      for (const int stages : {2, 3, 4})
        measure(uniform_row(recipe, 32, 8, 16, 32768), report, {blocks, stages});
  if (argc > 1 && !report.write(argv[1], argc, argv)) return 1;
}
