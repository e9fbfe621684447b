// SPDX-License-Identifier: MIT
//
// Benchmarks decode attention on the GPU: microseconds per layer by graph replay, on random data,
// with pages in random order, and enough sets of buffers in turn to exceed four times the L2. One
// line per row:
//
//   attend/<recipe>/<query heads>x<kv heads>/batch:<b>/tokens:<n>  us  GB/s of its own bytes  %
//
// where % is relative to 4.8 TB/s, the nominal memory bandwidth of an H200. Argument 1 is a JSON
// file to write. Argument 2 is a part of the names of the rows to run, or grid (batches by lengths,
// for each combination of heads), or tuning. Some outputs at 16 x 32K are checked against float64
// and reported as /error.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -Iinclude -o attend_bench bench/cuda/attend_bench.cu

#include <kvtilt/cuda/attention/attend.cuh>

#include "attend_error.cuh"
#include "layer_data.cuh"
#include "probe_support.cuh"
#include "replay.cuh"

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr int head_dim = 128;
constexpr int latent_dim = 512;  // DeepSeek's, with rope_dim channels behind it
constexpr int rope_dim = 64;
constexpr double sold_bandwidth = 4.8e12;
constexpr double most_error = 2e-3;

struct Row {
  const char* recipe;
  int query_heads;
  int kv_heads;
  std::vector<std::int64_t> lengths;
  std::string shape;
  bool with_error = false;                ///< check some outputs; one query per sequence
  std::vector<std::int32_t> indptr = {};  ///< start of each sequence's queries; empty: one each
  bool latent = false;                    ///< values are in the keys

  [[nodiscard]] LayerShape layer() const {
    if (latent) return LayerShape::latent(latent_dim, rope_dim);
    return {kv_heads, head_dim, head_dim, 0};
  }
};

/// The recipes of a row, whose names are joined by +. Several alternate over the kv heads.
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

/// Only rows whose name contains it are run.
std::string filter;

void time_row(const Row& row, const std::string& name, const cuda::AttendTuning& tuning,
              Report& report);

void measure(const Row& row, Report& report, const cuda::AttendTuning& tuning = {}) {
  std::string name = "attend/" + std::string(row.recipe) + "/" + std::to_string(row.query_heads) +
                     "x" + std::to_string(row.kv_heads) + "/" + row.shape;
  if (name.find(filter) == std::string::npos) return;
  if (tuning.blocks > 0)
    name += "/tuning:" + std::to_string(tuning.blocks) + "x" + std::to_string(tuning.stages);
  report.row(name, [&] { time_row(row, name, tuning, report); });
}

void time_row(const Row& row, const std::string& name, const cuda::AttendTuning& tuning,
              Report& report) {
  const LayerShape shape = row.layer();
  const std::vector<Recipe> recipes = recipes_of(row);
  Result<cuda::Attention> attention =
      row.latent ? cuda::Attention::create<cuda::LatentKernels<>>(shape, recipes, 64, tuning)
                 : cuda::Attention::create(shape, recipes, 64, tuning);
  if (!attention && tuning.blocks > 0) throw LeftOut(std::string(attention.message()));
  check(attention.status());
  const LayerData data(shape, recipes, row.lengths);
  const int sequences = static_cast<int>(row.lengths.size());
  const int asked = row.indptr.empty() ? sequences : row.indptr.back();
  const DeviceArray<std::int32_t> indptr(row.indptr);
  const std::size_t heads =
      static_cast<std::size_t>(asked) * static_cast<std::size_t>(row.query_heads);
  const DeviceArray<F16> queries(heads * static_cast<std::size_t>(shape.key_dim));
  const DeviceArray<F16> out(heads * static_cast<std::size_t>(shape.value_dim));
  fill_words<<<256, 256>>>(
      reinterpret_cast<std::byte*>(queries.data()), 0, 1, 0,
      static_cast<std::uint32_t>(heads * static_cast<std::size_t>(shape.key_dim) / 2), 1, 0, 5);
  const std::size_t workspace_bytes = attention->workspace_bytes();
  const DeviceArray<std::byte> workspace(workspace_bytes);
  check(attention->prepare({workspace.data(), workspace_bytes}, nullptr));
  finish();
  const auto launch = [&](int i, cudaStream_t stream) {
    check(attention->attend(data.layer(), data.batch(i),
                            row.indptr.empty() ? nullptr : indptr.data(),
                            {queries.data(), asked, row.query_heads, shape.key_dim},
                            {out.data(), asked, row.query_heads, shape.value_dim}, nullptr, {},
                            {workspace.data(), workspace_bytes}, stream));
  };
  const double seconds = replayed_seconds(std::max(data.sets(), 8), launch);
  const double rate = static_cast<double>(data.bytes()) / seconds;
  report.add(name + "/time", seconds * 1e6, "us");
  report.add(name + "/rate", rate * 1e-9, "GB/s");
  report.add(name + "/of_4.8TB/s", 100 * rate / sold_bandwidth, "%");
  report.add(name + "/blocks", attention->blocks(), "blocks");
  report.add(name + "/stages", attention->stages(), "stages");
  if (!row.with_error) return;
  launch(0, nullptr);
  finish();
  double worst = 0;
  for (const int part : {0, 1, 2}) {  // the first, one in the middle and the last
    const int sequence = part * (sequences - 1) / 2;
    const double error =
        attend_error(data, shape, sequence, row.lengths[static_cast<std::size_t>(sequence)],
                     part * (row.query_heads - 1) / 2, row.query_heads, queries.read(), out.read());
    if (worst == worst && !(error <= worst)) worst = error;  // NaN stays
  }
  report.add(name + "/error", worst, "of_norm");
  if (!(worst <= most_error)) report.fail(name + "/error_verdict", "more than 2e-3 of the norm");
}

Row uniform_row(const char* recipe, int query_heads, int kv_heads, int batch, std::int64_t tokens) {
  return {recipe, query_heads, kv_heads,
          std::vector<std::int64_t>(static_cast<std::size_t>(batch), tokens),
          "batch:" + std::to_string(batch) + "/tokens:" + std::to_string(tokens)};
}

Row ragged_row(const char* recipe, int query_heads, int kv_heads) {
  return {recipe,
          query_heads,
          kv_heads,
          {100, 120000, 9000, 300, 64000, 7777, 1200, 30000, 500, 2000, 18000, 33, 5000, 90000, 700,
           12000},
          "batch:16/tokens:ragged"};
}

/// A row with one token and up to four drafts per sequence.
Row drafts_row(const char* recipe, int query_heads, int kv_heads) {
  Row row = uniform_row(recipe, query_heads, kv_heads, 16, 32768);
  row.shape += "/drafts:ragged";
  row.indptr = {0};
  for (int i = 0; i < 16; ++i) row.indptr.push_back(row.indptr.back() + 1 + i % 5);
  return row;
}

/// A row over latents: all query heads of a GPU, 16 of 128 or all.
Row latent_row(const char* recipe, int query_heads) {
  Row row = uniform_row(recipe, query_heads, 1, 16, 32768);
  row.shape += "/latent";
  row.latent = true;
  return row;
}

constexpr const char* usual_recipes[] = {"k16v16", "k4v2", "k4v4", "k8v8", "k2v2", "k8v4"};

/// Measures all rows, those with a target first.
void measure_all(Report& report) {
  for (const char* recipe : usual_recipes) {
    Row row = uniform_row(recipe, 32, 8, 16, 32768);
    row.with_error = true;
    measure(row, report);
    measure(uniform_row(recipe, 32, 8, 1, 32768), report);
    measure(uniform_row(recipe, 32, 8, 1, 1024), report);
  }
  for (const char* recipe : {"k16v16", "k4v2"}) {
    measure(ragged_row(recipe, 32, 8), report);
    measure(drafts_row(recipe, 32, 8), report);
    measure(uniform_row(recipe, 64, 8, 16, 32768), report);
    measure(uniform_row(recipe, 32, 32, 4, 32768), report);
    measure(uniform_row(recipe, 8, 1, 1, 131072), report);  // one of 8 GPUs that share the heads
  }
  for (const char* recipe : {"k3v2", "k4v4+k3v2", "k8tv8", "k4tv4", "k4v2c", "k6v4", "k5v5",
                             "kivi2"}) {  // from k6v4 on: generic kernel
    measure(uniform_row(recipe, 32, 8, 16, 32768), report);
    measure(uniform_row(recipe, 32, 8, 1, 32768), report);
  }
  for (const char* recipe : {"k16", "k8", "k4"})
    for (const int query_heads : {16, 128}) measure(latent_row(recipe, query_heads), report);
}

void measure_grid(Report& report) {
  constexpr int heads[][2] = {{32, 8}, {64, 8}, {32, 32}};
  for (const auto& [query_heads, kv_heads] : heads)
    for (const char* recipe : usual_recipes) {
      measure(ragged_row(recipe, query_heads, kv_heads), report);
      for (const int batch : {1, 4, 16, 64})
        for (const std::int64_t tokens : {1024, 8192, 32768, 131072})
          measure(uniform_row(recipe, query_heads, kv_heads, batch, tokens), report);
    }
}

void measure_tuning(Report& report) {
  for (const char* recipe : usual_recipes)
    for (const int blocks : {1, 2, 3})
      for (const int stages : {2, 3, 4})
        measure(uniform_row(recipe, 32, 8, 16, 32768), report, {blocks, stages});
}

}  // namespace
}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  using namespace kvtilt::bench;
  Report report(argc, argv);
  const std::string rows = argc > 2 ? argv[2] : "";
  if (rows == "grid") {
    measure_grid(report);
  } else if (rows == "tuning") {
    measure_tuning(report);
  } else {
    filter = rows;
    measure_all(report);
  }
  return report.exit_code();
}
