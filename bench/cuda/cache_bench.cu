// SPDX-License-Identifier: MIT
//
// Benchmarks writing tokens to a device cache and reading them back: 8 kv heads of 128 channels,
// pages of 64 tokens, f16 input; the copy bandwidth of the card is measured in the same run.
// Argument 1 is a JSON file to write, argument 2 a part of the names of the rows to run; pack/ also
// runs pack_pages/, unpack/ and memory/, save/ also runs load/.
//
//   pack/<recipe>     appends a prompt of 32,768 tokens; bytes read and written over time, % of
//                     copy
//   pack_pages/<recipe>  the same into the engine's own pages
//   unpack/<recipe>   the same tokens as f16 rows
//   save/<recipe>, load/<recipe>  the same tokens to pinned host memory and back, in host time,
//                     checksums included; % of a copy of as many bytes over the same bus
//   memory/<recipe>   device memory that KVCache::create takes, and the figure of plan_memory
//   append/<recipe>/batch:<b>  one token for each of b sequences, per layer, in a graph of 32 layers
//                     that is replayed 64 times: with 64 sequences one seals a page at each step

#include <kvtilt/cuda/cache/kv_cache.cuh>
#include <kvtilt/cuda/cache/pack_pages.cuh>
#include <kvtilt/quant/recipe.hpp>

#include "layer_data.cuh"
#include "probe_support.cuh"
#include "replay.cuh"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::bench {
namespace {

constexpr int kv_heads = 8;
constexpr int head_dim = 128;
constexpr std::int64_t prompt = 32768;

/// Random f16 rows in device memory.
struct DeviceRows {
  DeviceArray<F16> data;
  std::int64_t tokens;

  explicit DeviceRows(std::int64_t tokens_, std::uint64_t seed)
      : data(static_cast<std::size_t>(tokens_) * kv_heads * head_dim), tokens(tokens_) {
    fill_words<<<2048, 256>>>(reinterpret_cast<std::byte*>(data.data()), 0, 1, 0,
                              static_cast<std::uint32_t>(tokens * kv_heads * head_dim / 2), 1, 0,
                              seed);
    finish();
  }
  [[nodiscard]] TensorView view() const { return {data.data(), tokens, kv_heads, head_dim}; }
  [[nodiscard]] MutableTensorView out() const { return {data.data(), tokens, kv_heads, head_dim}; }
  [[nodiscard]] double bytes() const {
    return static_cast<double>(tokens) * kv_heads * head_dim * 2;
  }
};

/// Free device memory; the driver gives it out in units of 2 MiB.
std::size_t free_bytes() {
  std::size_t left = 0, device = 0;
  KVTILT_CHECK(cudaMemGetInfo(&left, &device));
  return left;
}

double copy_rate(Report& report) {
  constexpr std::size_t bytes = std::size_t{1} << 30;
  DeviceArray<std::byte> from(bytes);
  DeviceArray<std::byte> to(bytes);
  const double seconds = median_seconds(15, [&] {
    KVTILT_CHECK(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice));
  });
  const double rate = 2.0 * bytes / seconds;
  report.add("copy", rate * 1e-9, "GB/s");
  return rate;
}

/// Measures pack_pages. The pages of `cache` stand for an engine's pool.
void measure_engine_pages(const std::string& name, cuda::KVCache& cache, const DeviceRows& keys,
                          const DeviceRows& values, double copied, Report& report) {
  const cuda::LayerView layer = check(cache.view(0));
  constexpr int sealed = static_cast<int>(PageKind::Sealed);
  constexpr int calls = 5;
  constexpr int pages = prompt / 64;
  std::vector<std::int32_t> order;
  for (std::int32_t page = 0; page < calls * pages; ++page) order.push_back(page);
  const DeviceArray<std::int32_t> places(order);
  const auto pack_all = [&] {
    for (int call = 0; call < calls; ++call)
      check(cuda::pack_pages(layer, keys.view(), values.view(), {}, places.data() + call * pages,
                             layer.pool[sealed], calls * pages));
  };
  const double seconds = median_seconds(7, pack_all) / calls;
  const double stored = static_cast<double>(pages * layer.block_bytes[sealed]);
  const double moved = keys.bytes() + values.bytes() + stored;
  report.add("pack_pages/" + name + "/time", seconds * 1e6, "us");
  report.add("pack_pages/" + name + "/of_copy", 100 * moved / seconds / copied, "%");
}

void measure_prompts(const std::string& name, const Recipe& recipe, double copied, Report& report) {
  constexpr int sequences = 6;
  const CacheShape shape = CacheShape::uniform(1, kv_heads, head_dim);
  cuda::CacheOptions options;
  options.max_sequences = sequences;
  options.max_sequence_tokens = prompt;
  options.token_capacity = sequences * (prompt + 64);
  const Plan plan = Plan::uniform(shape, recipe);
  // The first cache loads the kernels of create, whose memory must not count as the cache's.
  check(cuda::KVCache::create(shape, plan, {}).status());
  const std::size_t left = free_bytes();
  cuda::KVCache cache = check(cuda::KVCache::create(shape, plan, options));
  report.add("memory/" + name + "/taken", static_cast<double>(left - free_bytes()), "bytes");
  report.add("memory/" + name + "/planned",
             static_cast<double>(check(cuda::plan_memory(shape, plan, options)).device_bytes()),
             "bytes");
  const DeviceRows keys(prompt, 1);
  const DeviceRows values(prompt, 2);
  std::vector<SequenceId> ids;
  for (int i = 0; i < sequences; ++i) {
    ids.push_back(check(cache.open()));
    check(cache.reserve(ids.back(), prompt));
  }
  check(cache.append(ids[0], 0, keys.view(), values.view()));  // warms up
  finish();
  const double stored = static_cast<double>(cache.memory(ids[0])->bytes_in_use());
  const double moved = keys.bytes() + values.bytes() + stored;
  const std::span<SequenceId> others = std::span(ids).subspan(1);
  const auto append_all = [&] {
    for (const SequenceId id : others) check(cache.append(id, 0, keys.view(), values.view()));
  };
  const auto open_anew = [&] {
    for (SequenceId& id : others) {
      check(cache.close(id));
      id = check(cache.open());
      check(cache.reserve(id, prompt));
    }
  };
  const auto unpack_all = [&] {
    for (const SequenceId id : others) check(cache.unpack(id, 0, 0, keys.out(), values.out()));
  };
  const double packed = median_seconds(7, append_all, open_anew) / (sequences - 1);
  report.add("pack/" + name + "/time", packed * 1e6, "us");
  report.add("pack/" + name + "/of_copy", 100 * moved / packed / copied, "%");
  const double unpacked = median_seconds(15, unpack_all) / (sequences - 1);
  report.add("unpack/" + name + "/time", unpacked * 1e6, "us");
  report.add("unpack/" + name + "/of_copy", 100 * moved / unpacked / copied, "%");
  measure_engine_pages(name, cache, keys, values, copied, report);
  check(cache.poll(nullptr));
}

/// Host time of a call that the host waits for.
template <class Call>
double host_seconds(Call call) {
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    finish();
    const auto start = std::chrono::steady_clock::now();
    call();
    finish();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + 2, times.end());
  return times[2];
}

void measure_saving(const std::string& name, const Recipe& recipe, Report& report) {
  const CacheShape shape = CacheShape::uniform(1, kv_heads, head_dim);
  cuda::CacheOptions options;
  options.max_sequences = 2;
  options.max_sequence_tokens = prompt;
  options.token_capacity = 2 * prompt;
  cuda::KVCache cache = check(cuda::KVCache::create(shape, Plan::uniform(shape, recipe), options));
  const SequenceId id = check(cache.open());
  check(cache.reserve(id, prompt));
  const DeviceRows rows(prompt, 3);
  check(cache.append(id, 0, rows.view(), rows.view()));
  const std::size_t bytes = check(cache.saved_bytes(id));
  void* pinned = nullptr;
  KVTILT_CHECK(cudaMallocHost(&pinned, bytes));
  const std::span<std::byte> image(static_cast<std::byte*>(pinned), bytes);
  DeviceArray<std::byte> device(bytes);
  const auto add = [&](const char* verb, double seconds, double copied) {
    report.add(verb + ("/" + name) + "/time", seconds * 1e6, "us");
    report.add(verb + ("/" + name) + "/of_copy", 100 * copied / seconds, "%");
  };
  const double down = host_seconds(
      [&] { KVTILT_CHECK(cudaMemcpyAsync(pinned, device.data(), bytes, cudaMemcpyDeviceToHost)); });
  add("save", host_seconds([&] { check(cache.save(id, image)); }), down);
  const double up = host_seconds(
      [&] { KVTILT_CHECK(cudaMemcpyAsync(device.data(), pinned, bytes, cudaMemcpyHostToDevice)); });
  add("load", host_seconds([&] { check(cache.close(check(cache.load(image)))); }), up);
  check(cache.poll(nullptr));
  KVTILT_CHECK(cudaFreeHost(pinned));
}

void measure_append(const std::string& name, const Recipe& recipe, int batch_size, Report& report) {
  constexpr int layers = 32;
  constexpr int steps = 64;
  const CacheShape shape = CacheShape::uniform(layers, kv_heads, head_dim);
  cuda::CacheOptions options;
  options.max_sequences = batch_size;
  options.max_sequence_tokens = 1024;
  options.token_capacity = batch_size * 1088;
  cuda::KVCache cache = check(cuda::KVCache::create(shape, Plan::uniform(shape, recipe), options));
  std::vector<SequenceId> ids;
  for (int i = 0; i < batch_size; ++i) {
    ids.push_back(check(cache.open()));
    check(cache.reserve(ids.back(), 1024));
    // Sequences have different fill levels in their newest page.
    const DeviceRows rows(400 + i % 64, static_cast<std::uint64_t>(i));
    for (int layer = 0; layer < layers; ++layer)
      check(cache.append(ids.back(), layer, rows.view(), rows.view()));
    finish();
  }
  DeviceArray<std::int32_t> slots(static_cast<std::size_t>(batch_size));
  const cuda::SequenceBatch batch =
      check(cache.batch(ids, std::span(slots.data(), static_cast<std::size_t>(batch_size))));
  const DeviceRows rows(batch_size, 99);
  std::vector<std::int32_t> starts(static_cast<std::size_t>(batch_size) + 1);
  std::iota(starts.begin(), starts.end(), 0);
  const DeviceArray<std::int32_t> indptr(starts);
  Graph graph([&](cudaStream_t stream) {
    for (int layer = 0; layer < layers; ++layer)
      check(cache.append(batch, layer, rows.view(), rows.view(), indptr.data(), {}, stream));
  });
  std::vector<double> times;
  for (int step = -2; step < steps; ++step) {
    const double seconds = graph.seconds();
    if (step >= 0) times.push_back(seconds * 1e6 / layers);
  }
  check(cache.poll(graph.stream()));
  const std::string row = "append/" + name + "/batch:" + std::to_string(batch_size);
  double sum = 0;
  for (const double time : times) sum += time;
  report.add(row + "/mean", sum / steps, "us");
  report.add(row + "/worst", *std::max_element(times.begin(), times.end()), "us");
}

}  // namespace
}  // namespace kvtilt::bench

int main(int argc, char** argv) {
  using namespace kvtilt;
  using namespace kvtilt::bench;
  Report report(argc, argv);
  double copied = 0;
  report.row("copy", [&] { copied = copy_rate(report); });
  Recipe min_max = presets::k4v2;
  min_max.key.rule = min_max.value.rule = RangeRule::MinMax;
  const std::pair<const char*, Recipe> rows[] = {{"k4v2", presets::k4v2},
                                                 {"k4v2-minmax", min_max},
                                                 {"k4v4", presets::k4v4},
                                                 {"k8v8", presets::k8v8},
                                                 {"k16v16", presets::k16v16}};
  const std::string filter = argc > 2 ? argv[2] : "";
  const auto measure = [&](const std::string& name, const auto& measure_row) {
    if (name.find(filter) != std::string::npos) report.row(name, measure_row);
  };
  for (const auto& [name, recipe] : rows)
    measure("pack/" + std::string(name), [&] { measure_prompts(name, recipe, copied, report); });
  for (const auto& [name, recipe] : rows)
    measure("save/" + std::string(name), [&] { measure_saving(name, recipe, report); });
  for (const auto& [name, recipe] : rows)
    for (const int batch : {1, 64})
      measure("append/" + std::string(name) + "/batch:" + std::to_string(batch),
              [&] { measure_append(name, recipe, batch, report); });
  return report.exit_code();
}
