// SPDX-License-Identifier: MIT
// Attention over the contents of a device cache, through the calls of an engine, against float64.
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "attended.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

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
    const Rows<float> queries = random_queries(random, attended_layer, 3, gqa_ratio);
    const Outputs arrays(queries, attention.workspace_bytes());
    KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
    for (int launch = 0; launch < 2; ++launch)
      KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, nullptr,
                                        arrays.queries.view(), arrays.out.out(), arrays.lse.data(),
                                        {}, arrays.workspace.span(), nullptr));
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
  Rows<float> queries = random_queries(random, attended_layer, count, gqa_ratio);
  Outputs arrays(queries, attention.workspace_bytes());
  KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
  DeviceRows<float> keys(count, 2, 64);
  DeviceRows<float> values(count, 2, 64);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  expect_cuda(cudaDeviceSynchronize());
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  KVTILT_EXPECT_OK(cache.both.gpu.append(cache.batch, 0, keys.view(), values.view(), stream));
  KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, nullptr,
                                    arrays.queries.view(), arrays.out.out(), arrays.lse.data(), {},
                                    arrays.workspace.span(), stream));
  expect_cuda(cudaStreamEndCapture(stream, &graph));
  expect_cuda(cudaGraphInstantiate(&replay, graph, 0));
  for (int step = 0; step < 80; ++step) {
    const Rows<float> k = random_rows(random, count, 2, 64, 1.0f, 0.5f);
    const Rows<float> v = random_rows(random, count, 2, 64);
    queries = random_queries(random, attended_layer, count, gqa_ratio);
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
      const Chunks chunks(random, attended_layer, lengths, gqa_ratio);
      const auto packed = [](const RandomInput& input) { return input.rows(); };
      const DeviceRows<float> keys(packed(chunks.keys));
      const DeviceRows<float> values(packed(chunks.values));
      const DeviceArray<std::int32_t> indptr(chunks.indptr);
      const Rows<float> queries = packed(chunks.queries);
      const Outputs arrays(queries, attention.workspace_bytes());
      KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
      KVTILT_EXPECT_OK(attention.attend_prefill(cache.layer(), cache.batch.device, indptr.data(),
                                                arrays.queries.view(), keys.view(), values.view(),
                                                arrays.out.out(), arrays.lse.data(), {},
                                                arrays.workspace.span(), nullptr));
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
  KVTILT_SKIP_WITHOUT_GPU();
  int devices = 0;
  expect_cuda(cudaGetDeviceCount(&devices));
  if (devices != 6) GTEST_SKIP() << "this needs the emulated devices";
  Random random(24);
  Attended cache(presets::k4v2);
  cache.hold_one(random);
  const Rows<float> queries = random_queries(random, attended_layer, 1, gqa_ratio);
  int most_blocks = 1000;
  for (int device = 0; device < devices; ++device) {
    expect_cuda(cudaSetDevice(device));
    const cuda::Attention attention = make_attention(presets::k4v2);
    EXPECT_EQ(attention.is_generic(), device == 5) << "not one warp's ring fits";
    EXPECT_LE(attention.blocks(), most_blocks);
    most_blocks = attention.blocks();
    const Outputs arrays(queries, attention.workspace_bytes());
    KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
    KVTILT_EXPECT_OK(attention.attend(cache.layer(), cache.batch.device, nullptr,
                                      arrays.queries.view(), arrays.out.out(), arrays.lse.data(),
                                      {}, arrays.workspace.span(), nullptr));
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

/// Reading pages by another recipe would give NaN or pass the end of the pool.
TEST(DeviceCacheAttendHostile, LayersOfOtherRecipesAreRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(26);
  Attended cache(presets::k4v2);
  cache.hold_one(random);
  const Rows<float> queries = random_queries(random, attended_layer, 1, gqa_ratio);
  const DeviceRows<float> rows(1, 2, 64);
  const DeviceArray<std::int32_t> indices(std::vector<std::int32_t>{0, 1});
  const DeviceArray<std::int32_t> lengths(std::vector<std::int32_t>{100});
  const DeviceArray<std::byte> tables(cuda::import_workspace_bytes(1, 2));
  cuda::EngineTables engine;
  engine.sequences = 1;
  engine.indices = indices.data();
  engine.stride = 2;
  engine.lengths = lengths.data();
  const cuda::LayerView layer = cache.layer();
  const cuda::ImportedLayer imported =
      cuda::import_tables(layer, engine, layer.pool[static_cast<int>(PageKind::Sealed)], 128, 2,
                          tables.span())
          .value();
  for (const Recipe& recipe : {presets::k4v2, presets::k8v4, presets::kivi2}) {
    const bool own = recipe == presets::k4v2;
    const cuda::Attention attention = make_attention(recipe);
    const auto prefill =
        cuda::PrefillAttention::create<SomeKernels>(attended_layer, recipe).value();
    const Outputs arrays(queries, attention.workspace_bytes());
    const DeviceArray<std::byte> chunks(prefill.workspace_bytes());
    KVTILT_EXPECT_OK(prefill.prepare(chunks.span(), nullptr));
    KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
    const auto attend = [&](const cuda::LayerView& of, const cuda::Batch& batch) {
      return attention.attend(of, batch, nullptr, arrays.queries.view(), arrays.out.out(),
                              arrays.lse.data(), {}, arrays.workspace.span(), nullptr);
    };
    for (const Status& status :
         {attend(layer, cache.batch.device), attend(imported.view, imported.batch),
          prefill.attend_prefill(layer, cache.batch.device, nullptr, arrays.queries.view(),
                                 rows.view(), rows.view(), arrays.out.out(), arrays.lse.data(), {},
                                 chunks.span(), nullptr)}) {
      EXPECT_EQ(status.code(), own ? ErrorCode::Ok : ErrorCode::InvalidArgument);
      if (!own)
        EXPECT_THAT(status.message(),
                    testing::HasSubstr("create one with the layer's own recipes"));
    }
  }
}

TEST(DeviceCacheAttendHostile, WorkspacesAndWorkThatCannotBeAreRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(25);
  Attended cache(presets::k4v2);
  cache.hold_one(random);
  const cuda::Attention attention = make_attention(presets::k4v2);
  const auto prefill =
      cuda::PrefillAttention::create<SomeKernels>(attended_layer, presets::k4v2).value();
  constexpr int rows = 40;
  const Rows<float> queries = random_queries(random, attended_layer, rows, gqa_ratio);
  const std::size_t attend_bytes = attention.workspace_bytes();
  const std::size_t prefill_bytes = prefill.workspace_bytes();
  const Outputs arrays(queries, std::max(attend_bytes, prefill_bytes) + 16);
  const std::span<std::byte> all = arrays.workspace.span();
  const DeviceRows<float> chunk(rows, 2, 64);
  const auto attend = [&](const cuda::LayerView& layer, std::span<std::byte> workspace) {
    return attention.attend(layer, cache.batch.device, nullptr, arrays.queries.view(),
                            arrays.out.out(), arrays.lse.data(), {}, workspace, nullptr);
  };
  const auto attend_prefill = [&](std::span<std::byte> workspace) {
    return prefill.attend_prefill(cache.layer(), cache.batch.device, nullptr, arrays.queries.view(),
                                  chunk.view(), chunk.view(), arrays.out.out(), arrays.lse.data(),
                                  {}, workspace, nullptr);
  };
  KVTILT_EXPECT_OK(attention.prepare(all, nullptr));
  KVTILT_EXPECT_OK(attend(cache.layer(), all.first(attend_bytes)));
  KVTILT_EXPECT_OK(attend_prefill(all.first(prefill_bytes)));
  const auto refused = [](const Status& status, const std::string& words) {
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(status.message(), testing::HasSubstr(words));
  };
  refused(attend(cache.layer(), all.first(attend_bytes - 1)),
          std::to_string(attend_bytes - 1) + " bytes, " + std::to_string(attend_bytes) + " are");
  refused(attend_prefill(all.first(prefill_bytes - 1)),
          std::to_string(prefill_bytes - 1) + " bytes, " + std::to_string(prefill_bytes) + " are");
  refused(attend(cache.layer(), all.subspan(8)), "not aligned to 16 bytes");
  refused(attend_prefill(all.subspan(8)), "not aligned to 16 bytes");
  refused(attention.prepare(all.subspan(8), nullptr), "not aligned to 16 bytes");
  refused(attention.prepare(all.first(attend_bytes - 1), nullptr), " are needed");
  cuda::LayerView endless = cache.layer();
  endless.table_stride = std::int64_t{1} << 30;  // 2 kv heads: 2^31 units
  refused(attend(endless, all), "more work than one launch can number");
}

TEST(DeviceCacheAttendHostile, RowsThatCannotBeMeantAreTold) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(27);
  Attended cache(presets::k4v2);
  cache.hold_one(random);
  const cuda::Attention attention = make_attention(presets::k4v2);
  const auto prefill =
      cuda::PrefillAttention::create<SomeKernels>(attended_layer, presets::k4v2).value();
  const Rows<float> queries = random_queries(random, attended_layer, 3, gqa_ratio);
  const Outputs arrays(queries, std::max(attention.workspace_bytes(), prefill.workspace_bytes()));
  const DeviceRows<float> chunk(3, 2, 64);
  KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
  const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{1, 4});
  for (const bool prompts : {false, true}) {
    KVTILT_EXPECT_OK(
        prompts ? prefill.attend_prefill(cache.layer(), cache.batch.device, indptr.data(),
                                         arrays.queries.view(), chunk.view(), chunk.view(),
                                         arrays.out.out(), arrays.lse.data(), {},
                                         arrays.workspace.span(), nullptr)
                : attention.attend(cache.layer(), cache.batch.device, indptr.data(),
                                   arrays.queries.view(), arrays.out.out(), arrays.lse.data(), {},
                                   arrays.workspace.span(), nullptr));
    const Status told = cache.both.gpu.poll(nullptr);
    EXPECT_EQ(told.code(), ErrorCode::Corrupt);
    EXPECT_THAT(told.message(), testing::HasSubstr("nothing was attended to for any sequence of a "
                                                   "batch: indptr gives sequence 0 rows 1 up to 4 "
                                                   "of 3"));
    KVTILT_EXPECT_OK(cache.both.gpu.poll(nullptr));
  }
  const int most = cuda::max_attend_queries;
  const MutableTensorView out(arrays.out.array.data(), most + 1, 8, 64);
  const TensorView asked(arrays.queries.array.data(), most + 1, 8, 64);
  const Status refused = attention.attend(cache.layer(), cache.batch.device, indptr.data(), asked,
                                          out, nullptr, {}, arrays.workspace.span(), nullptr);
  EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(refused.message(), testing::HasSubstr("65537 queries of some sequences"));
}

TEST(DeviceCacheAttendHostile, ShapesWithoutACacheHaveNoAttention) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const LayerShape& shape : {LayerShape{0, 64, 64}, LayerShape{-1, 64, 64},
                                  LayerShape{2, 64, 64, -1}, LayerShape{2, 0, 64}})
    for (const int page_tokens : {64, 0}) {
      const auto attention =
          cuda::Attention::create<SomeKernels>(shape, presets::k4v2, page_tokens);
      EXPECT_EQ(attention.code(), ErrorCode::InvalidArgument);
      const auto prefill =
          cuda::PrefillAttention::create<SomeKernels>(shape, presets::k4v2, page_tokens);
      EXPECT_EQ(prefill.code(), ErrorCode::InvalidArgument);
    }
}

TEST(DeviceCacheAttend, CreateAndSupportsAgree) {
  KVTILT_SKIP_WITHOUT_GPU();
  const auto same = [](const auto& created, const Result<cuda::KernelKind>& kind) {
    EXPECT_EQ(created.code(), kind.code());
    EXPECT_EQ(created.message(), kind.message());
    if (kind.ok()) EXPECT_EQ(created->is_generic(), *kind == cuda::KernelKind::Generic);
  };
  std::set<int> seen;
  for (const LayerShape& shape :
       {attended_layer, LayerShape{2, 96, 96}, LayerShape{2, 64, 512}, LayerShape{}})
    for (const Recipe& recipe :
         {presets::k4v2, presets::k8v4, presets::kivi2, presets::per_channel_keys(9, 2)})
      for (const int page_tokens : {32, 48, 64}) {
        const auto attention = cuda::supports_attention<SomeKernels>(shape, recipe, page_tokens);
        same(cuda::Attention::create<SomeKernels>(shape, recipe, page_tokens), attention);
        same(cuda::PrefillAttention::create<SomeKernels>(shape, recipe, page_tokens),
             cuda::supports_prefill<SomeKernels>(shape, recipe, page_tokens));
        seen.insert(attention.ok() ? static_cast<int>(*attention)
                                   : 10 + static_cast<int>(attention.code()));
      }
  EXPECT_EQ(seen.size(), 4u) << "fast, generic, InvalidArgument, Unsupported";
}

/// Empty batches are allowed, as for append and truncate.
TEST(DeviceCacheAttend, NothingAskedIsNothingDone) {
  KVTILT_SKIP_WITHOUT_GPU();
  Attended cache(presets::k4v2);
  cache.ids.push_back(cache.both.open(400));
  cache.make_batch();
  const cuda::Attention attention = make_attention(presets::k4v2);
  const auto prefill =
      cuda::PrefillAttention::create<SomeKernels>(attended_layer, presets::k4v2).value();
  const auto nothing = [](int heads) {
    return TensorView(static_cast<const float*>(nullptr), 0, heads, 64);
  };
  const MutableTensorView out(static_cast<float*>(nullptr), 0, 8, 64);
  const auto none = cache.both.gpu.batch(std::vector<SequenceId>{}, {}).value();
  for (const cuda::SequenceBatch& batch : {none, cache.batch}) {
    KVTILT_EXPECT_OK(attention.attend(cache.layer(), batch.device, nullptr, nothing(8), out,
                                      nullptr, {}, {}, nullptr));
    KVTILT_EXPECT_OK(prefill.attend_prefill(cache.layer(), batch.device, nullptr, nothing(8),
                                            nothing(2), nothing(2), out, nullptr, {}, {}, nullptr));
  }
  const DeviceRows<float> some(3, 8, 64);
  const Status lost = attention.attend(cache.layer(), none.device, nullptr, some.view(), some.out(),
                                       nullptr, {}, {}, nullptr);
  EXPECT_THAT(lost.message(), testing::HasSubstr("3 queries of 0 sequences"));
}

}  // namespace
}  // namespace kvtilt::test
