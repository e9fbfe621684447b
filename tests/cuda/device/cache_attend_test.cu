// SPDX-License-Identifier: MIT
// Attention over what a device cache holds, by the calls that an engine makes, against float64.
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include "support.cuh"
#include "support/device_prefill.hpp"
#include "support/some_kernels.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

constexpr int ratio = 4;
constexpr LayerShape attended_layer{2, 64, 64, 0};

/// A cache, and sequences in it with a batch.
struct Attended {
  BothCaches both;
  std::vector<BothIds> ids;
  DeviceArray<std::int32_t> slots;
  cuda::SequenceBatch batch{};
  std::vector<LayerView> shown;

  explicit Attended(const Recipe& recipe)
      : both(CacheShape{{attended_layer}}, Plan::uniform(CacheShape{{attended_layer}}, recipe),
             options()),
        slots(8) {}

  static cuda::CacheOptions options() {
    cuda::CacheOptions options;
    options.token_capacity = 8192;
    options.max_sequences = 4;
    return options;
  }
  [[nodiscard]] cuda::LayerStorage layer() const { return both.gpu.view(0).value(); }
  [[nodiscard]] int count() const { return static_cast<int>(ids.size()); }
  void make_batch() {
    std::vector<SequenceId> gpu;
    for (const BothIds& id : ids) gpu.push_back(id.gpu);
    batch = both.gpu.batch(gpu, slots.span()).value();
  }
  const std::vector<LayerView>& views() {  // nvcc refuses it by value
    shown.clear();
    for (const BothIds& id : ids) shown.push_back(both.cpu.view(id.cpu, 0).value());
    return shown;
  }
};

/// A launch's arrays in device memory.
struct Outputs {
  DeviceRows<float> queries;
  DeviceRows<float> out;
  DeviceArray<float> lse;
  DeviceArray<std::byte> workspace;

  Outputs(const Rows<float>& asked, std::size_t workspace_bytes)
      : queries(asked),
        out(asked.tokens, asked.heads, attended_layer.value_dim),
        lse(static_cast<std::size_t>(asked.tokens * asked.heads)),
        workspace(std::vector<std::byte>(workspace_bytes)) {}
  [[nodiscard]] Output get() const {
    Output output(out.tokens, out.heads, out.dim);
    output.out = out.get();
    output.lse = lse.get();
    return output;
  }
};

cuda::Attention make_attention(const Recipe& recipe) {
  return cuda::Attention::create<SomeKernels>(attended_layer, recipe).value();
}

TEST(DeviceCacheAttend, AfterForksAndTruncations) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const Recipe& recipe : {presets::k4v2, presets::kivi2}) {
    Random random(21);
    Attended cache(recipe);
    BothCaches& both = cache.both;
    std::vector<BothIds>& ids = cache.ids;
    ids.push_back(both.open(2000));
    both.append(ids[0], random, 700);
    ids.push_back({both.gpu.fork(ids[0].gpu, 1000).value(), both.cpu.fork(ids[0].cpu).value()});
    KVTILT_EXPECT_OK(both.cpu.reserve(ids[1].cpu, 1000));
    KVTILT_EXPECT_OK(both.gpu.truncate(ids[1].gpu, 410));
    KVTILT_EXPECT_OK(both.cpu.truncate(ids[1].cpu, 410));
    both.append(ids[1], random, 200);
    both.append(ids[0], random, 300);
    ids.push_back(both.open(100));
    both.append(ids[2], random, 1);
    cache.make_batch();

    const cuda::Attention attention = make_attention(recipe);
    EXPECT_EQ(attention.is_generic(), recipe == presets::kivi2);
    const Rows<float> queries = random_queries(random, attended_layer, 3, ratio);
    const Outputs arrays(queries, attention.workspace_bytes(3, 1, queries.heads));
    for (int launch = 0; launch < 2; ++launch)
      KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, arrays.queries.view(),
                                        arrays.out.out(), arrays.lse.data(), {},
                                        arrays.workspace.data(), nullptr));
    EXPECT_TRUE(is_close(cache.views(), queries, AttendOptions{}, arrays.get()))
        << to_string(recipe);
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  }
}

TEST(DeviceCacheAttend, AGraphReplaysStepsAsSequencesGrow) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(22);
  Attended cache(presets::k4v2);
  for (const int tokens : {150, 0, 60}) {
    cache.ids.push_back(cache.both.open(400));
    if (tokens > 0) cache.both.append(cache.ids.back(), random, tokens);
  }
  cache.make_batch();
  const int count = cache.count();
  const cuda::Attention attention = make_attention(presets::k4v2);
  Rows<float> queries = random_queries(random, attended_layer, count, ratio);
  Outputs arrays(queries, attention.workspace_bytes(count, 1, queries.heads));
  DeviceRows<float> keys(count, 2, 64);
  DeviceRows<float> values(count, 2, 64);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  expect_cuda(cudaDeviceSynchronize());
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  KVTILT_EXPECT_OK(cache.both.gpu.append(cache.batch, 0, keys.view(), values.view(), stream));
  KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, arrays.queries.view(),
                                    arrays.out.out(), arrays.lse.data(), {},
                                    arrays.workspace.data(), stream));
  expect_cuda(cudaStreamEndCapture(stream, &graph));
  expect_cuda(cudaGraphInstantiate(&replay, graph, 0));
  for (int step = 0; step < 80; ++step) {
    const Rows<float> k = random_rows(random, count, 2, 64, 1.0f, 0.5f);
    const Rows<float> v = random_rows(random, count, 2, 64);
    queries = random_queries(random, attended_layer, count, ratio);
    keys.array.set(k.data);
    values.array.set(v.data);
    arrays.queries.array.set(queries.data);
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaGraphLaunch(replay, stream));
    expect_cuda(cudaStreamSynchronize(stream));
    for (int s = 0; s < count; ++s)
      KVTILT_EXPECT_OK(cache.both.cpu.append(cache.ids[static_cast<std::size_t>(s)].cpu, 0,
                                             k.view(s, 1), v.view(s, 1)));
    if (step % 16 == 15)
      EXPECT_TRUE(is_close(cache.views(), queries, AttendOptions{}, arrays.get())) << step;
  }
  EXPECT_GT(cache.views()[0].page_count, cache.views()[1].page_count) << "none was sealed";
  expect_cuda(cudaGraphExecDestroy(replay));
  expect_cuda(cudaGraphDestroy(graph));
  expect_cuda(cudaStreamDestroy(stream));
}

TEST(DeviceCacheAttend, PromptsInChunks) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const Recipe& recipe : {presets::k4v2, presets::kivi2}) {
    Random random(23);
    Attended cache(recipe);
    for (int i = 0; i < 2; ++i) cache.ids.push_back(cache.both.open(600));
    cache.make_batch();
    const cuda::PrefillAttention attention =
        cuda::PrefillAttention::create<SomeKernels>(attended_layer, recipe).value();
    for (const std::vector<int>& lengths :
         {std::vector<int>{130, 7}, {1, 200}, {100, 0}, {40, 33}}) {
      const Chunks chunks(random, attended_layer, lengths, ratio);
      const auto packed = [](const RandomInput& input) { return input.rows(); };
      const DeviceRows<float> keys(packed(chunks.keys));
      const DeviceRows<float> values(packed(chunks.values));
      const DeviceArray<std::int32_t> indptr(chunks.indptr);
      const Rows<float> queries = packed(chunks.queries);
      const Outputs arrays(queries, attention.workspace_bytes(2, queries.tokens, queries.heads));
      KVTILT_EXPECT_OK(attention.attend_prefill(cache.layer(), cache.batch.device, indptr.data(),
                                                arrays.queries.view(), keys.view(), values.view(),
                                                arrays.out.out(), arrays.lse.data(), {},
                                                arrays.workspace.data(), nullptr));
      EXPECT_TRUE(is_close(cache.views(), chunks, AttendOptions{}, arrays.get()))
          << to_string(recipe);
      for (std::size_t s = 0; s < 2; ++s) {
        const std::int64_t first = chunks.indptr[s];
        const Rows<float> k = packed(chunks.keys);
        const Rows<float> v = packed(chunks.values);
        const auto chunk = [&](const DeviceRows<float>& rows) {
          return TensorView(rows.array.data() + first * 2 * 64, lengths[s], 2, 64);
        };
        KVTILT_EXPECT_OK(
            cache.both.gpu.append(cache.ids[s].gpu, 0, chunk(keys), chunk(values), nullptr));
        KVTILT_EXPECT_OK(cache.both.cpu.append(cache.ids[s].cpu, 0, k.view(first, lengths[s]),
                                               v.view(first, lengths[s])));
      }
    }
  }
}

TEST(DeviceCacheAttend, DevicesWithLittleSharedMemoryHaveFewerWarps) {
  int devices = 0;
  expect_cuda(cudaGetDeviceCount(&devices));
  if (devices != 6) GTEST_SKIP() << "this needs the emulated devices";
  Random random(24);
  Attended cache(presets::k4v2);
  cache.ids.push_back(cache.both.open(400));
  cache.both.append(cache.ids[0], random, 330);
  cache.make_batch();
  const Rows<float> queries = random_queries(random, attended_layer, 1, ratio);
  int most_blocks = 1000;
  for (int device = 0; device < devices; ++device) {
    expect_cuda(cudaSetDevice(device));
    const cuda::Attention attention = make_attention(presets::k4v2);
    EXPECT_EQ(attention.is_generic(), device == 5) << "not one warp's ring fits";
    EXPECT_LE(attention.blocks(), most_blocks);
    most_blocks = attention.blocks();
    const Outputs arrays(queries, attention.workspace_bytes(1, 1, queries.heads));
    KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, arrays.queries.view(),
                                      arrays.out.out(), arrays.lse.data(), {},
                                      arrays.workspace.data(), nullptr));
    EXPECT_TRUE(is_close(cache.views(), queries, AttendOptions{}, arrays.get())) << device;
    const auto tuned =
        cuda::Attention::create<SomeKernels>(attended_layer, presets::k4v2, 64, {3, 4});
    EXPECT_EQ(tuned.ok(), device == 0);
    const cuda::DeviceLimits limits = cuda::DeviceLimits::current().value();
    for (int blocks = 1; blocks < 5; ++blocks) {
      const auto fit = [&](int bytes) { return limits.shared_per_multiprocessor / (bytes + 1024); };
      EXPECT_EQ(fit(limits.shared_of_each(blocks)), blocks);
      EXPECT_EQ(fit(limits.shared_of_each(blocks) + 1), blocks - 1);
    }
  }
  expect_cuda(cudaSetDevice(0));
}

TEST(DeviceCacheAttendHostile, WorkspacesAndWorkThatCannotBeAreRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(25);
  Attended cache(presets::k4v2);
  cache.ids.push_back(cache.both.open(400));
  cache.both.append(cache.ids[0], random, 330);
  cache.make_batch();
  const cuda::Attention attention = make_attention(presets::k4v2);
  const Rows<float> queries = random_queries(random, attended_layer, 1, ratio);
  const Outputs arrays(queries, attention.workspace_bytes(1, 1, queries.heads) + 16);
  const auto attend = [&](const cuda::LayerStorage& layer, std::byte* workspace) {
    return attention.attend(layer, cache.batch.device, arrays.queries.view(), arrays.out.out(),
                            arrays.lse.data(), {}, workspace, nullptr);
  };
  const Status unaligned = attend(cache.layer(), arrays.workspace.data() + 8);
  EXPECT_EQ(unaligned.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(unaligned.message(), testing::HasSubstr("not aligned to 16 bytes"));
  cuda::LayerStorage endless = cache.layer();
  endless.table_stride = std::int64_t{1} << 30;  // 2 kv heads: 2^31 units
  const Status numbers = attend(endless, arrays.workspace.data());
  EXPECT_EQ(numbers.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(numbers.message(), testing::HasSubstr("more work than one launch can number"));
}

}  // namespace
}  // namespace kvtilt::test
