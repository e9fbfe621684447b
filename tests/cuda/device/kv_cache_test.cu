// SPDX-License-Identifier: MIT
#include "support.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {
namespace {

using testing::HasSubstr;

TEST(DeviceKVCache, RaggedBatchesAreTheirSequences) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(4);
  const CacheShape shape = two_layers();
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  std::vector<BothIds> open;
  std::vector<SequenceId> ids;
  for (int i = 0; i < 4; ++i) {
    open.push_back(both.open(700));
    ids.push_back(open.back().gpu);
  }
  const DeviceArray<std::int32_t> memory(4);
  const cuda::SequenceBatch batch = both.gpu.batch(ids, memory.span()).value();
  for (const std::vector<std::int32_t>& counts :
       {std::vector<std::int32_t>{3, 0, 200, 64}, {100, 1, 1, 32}, {1, 1, 1, 1}, {0, 300, 0, 77}}) {
    std::vector<std::int32_t> starts = {0};
    for (const std::int32_t count : counts) starts.push_back(starts.back() + count);
    const DeviceArray<std::int32_t> indptr(starts);
    for (const int layer : {0, 2}) {
      const LayerShape& of = shape.layers[static_cast<std::size_t>(layer)];
      const Rows<float> keys = random_rows(random, starts.back(), of.kv_heads, of.key_dim);
      const Rows<float> values = random_rows(random, starts.back(), of.kv_heads, of.value_dim);
      const DeviceRows<float> gpu_keys(keys);
      const DeviceRows<float> gpu_values(values);
      KVTILT_EXPECT_OK(both.gpu.append(batch, layer, gpu_keys.view(), gpu_values.view(),
                                       indptr.data(), counts, nullptr));
      for (std::size_t i = 0; i < 4; ++i)
        KVTILT_EXPECT_OK(both.cpu.append(open[i].cpu, layer, keys.view(starts[i], counts[i]),
                                         values.view(starts[i], counts[i])));
      expect_cuda(cudaDeviceSynchronize());
    }
    for (const BothIds& id : open) EXPECT_TRUE(both.same(id));
  }
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
}

TEST(DeviceKVCache, AnotherOneTakesItsPlace) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(3);
  const CacheShape shape = two_layers();
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  BothCaches other(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  (void)other.open(100);
  const BothIds id = other.open(400);
  other.append(id, random, 300);
  both.cpu = std::move(other.cpu);
  both.gpu = std::move(other.gpu);
  EXPECT_EQ(both.gpu.length(id.gpu).value(), 300);
  both.append(id, random, 100);
  EXPECT_TRUE(both.same(id));
}

TEST(DeviceKVCache, BatchesAreCutToLengthsOnTheDevice) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(7);
  const CacheShape shape = two_layers(64, 64, 100);
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  std::vector<BothIds> open;
  std::vector<SequenceId> ids;
  for (int i = 0; i < 3; ++i) {
    open.push_back(both.open(400));
    both.append(open.back(), random, 200 + 60 * i);
    ids.push_back(open.back().gpu);
  }
  const DeviceArray<std::int32_t> memory(3);
  const cuda::SequenceBatch batch = both.gpu.batch(ids, memory.span()).value();
  const auto cut = [&](const std::vector<std::int64_t>& lengths, bool told) {
    const DeviceArray<std::int64_t> device(lengths);
    KVTILT_EXPECT_OK(both.gpu.truncate(batch, device.data(),
                                       told ? lengths : std::vector<std::int64_t>{}, nullptr));
    if (!told) KVTILT_EXPECT_OK(both.gpu.note_truncated(batch, lengths, nullptr));
    expect_cuda(cudaDeviceSynchronize());
    for (std::size_t i = 0; i < 3; ++i) {
      KVTILT_EXPECT_OK(both.cpu.truncate(open[i].cpu, lengths[i]));
      EXPECT_TRUE(both.same(open[i]));
    }
  };
  cut({197, 260, 315}, true);
  cut({190, 255, 314}, false);
  for (const BothIds& id : open) both.append(id, random, 40);
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));

  // The host refuses the whole batch; without lengths, the device refuses by sequence.
  const std::vector<std::int64_t> lost = {220, 150, 340};
  const DeviceArray<std::int64_t> device(lost);
  EXPECT_THAT(both.gpu.truncate(batch, device.data(), lost).message(), HasSubstr("window"));
  EXPECT_THAT(both.gpu.truncate(batch, nullptr, lost).message(), HasSubstr("null"));
  EXPECT_THAT(both.gpu.truncate(batch, device.data(), std::vector<std::int64_t>{1}).message(),
              HasSubstr("3 sequences, but 1 lengths"));
  for (const BothIds& id : open) EXPECT_TRUE(both.same(id));
  KVTILT_EXPECT_OK(both.gpu.truncate(batch, device.data(), {}));
  EXPECT_EQ(both.gpu.poll(nullptr).code(), ErrorCode::InvalidArgument);
  for (std::size_t i = 0; i < 3; ++i) {
    if (i != 1) KVTILT_EXPECT_OK(both.cpu.truncate(open[i].cpu, lost[i]));
    KVTILT_EXPECT_OK(both.gpu.refresh(ids[i], nullptr));
    EXPECT_TRUE(both.same(open[i]));
  }
}

TEST(DeviceKVCache, AnErrorIsReturnedOnceAndNotLeftToTheRuntime) {
  KVTILT_SKIP_WITHOUT_GPU();
  EXPECT_FALSE(cuda::to_status(cudaSetDevice(-1), "choosing a device").ok());
  expect_cuda(cudaGetLastError());
}

TEST(DeviceKVCache, AGraphReplaysAppendsAndCuts) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int steps = 200;
  constexpr int sequences = 3;
  Random random(6);
  const CacheShape shape = two_layers(64, 64, 100);
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  std::vector<BothIds> open;
  std::vector<SequenceId> ids;
  for (int i = 0; i < sequences; ++i) {
    open.push_back(both.open(400));
    both.append(open.back(), random, 5 + 60 * i);
    ids.push_back(open.back().gpu);
  }
  const DeviceArray<std::int32_t> memory(sequences);
  const cuda::SequenceBatch batch = both.gpu.batch(ids, memory.span()).value();
  cudaStream_t stream = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  expect_cuda(cudaDeviceSynchronize());
  // Lengths above those of the sequences cut nothing.
  DeviceArray<std::int64_t> lengths(std::vector<std::int64_t>(sequences, 1000));
  DeviceRows<float> keys[] = {{sequences, 2, 64}, {sequences, 1, 64}};
  DeviceRows<float> values[] = {{sequences, 2, 64}, {sequences, 1, 96}};
  cudaGraph_t graph = nullptr;
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 2; ++i)
    KVTILT_EXPECT_OK(both.gpu.append(batch, 2 * i, keys[i].view(), values[i].view(), stream));
  KVTILT_EXPECT_OK(both.gpu.truncate(batch, lengths.data(), {}, stream));
  EXPECT_THAT(both.gpu.truncate(ids[0], 1, stream).message(),
              HasSubstr("a batch's truncate with lengths that the host does not know can"));
  expect_cuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay = nullptr;
  expect_cuda(cudaGraphInstantiate(&replay, graph, 0));

  const std::vector<std::int32_t> ones(sequences, 1);
  for (int step = 0; step < steps; ++step) {
    for (int i = 0; i < 2; ++i) {
      const Rows<float> k = random_rows(random, sequences, keys[i].heads, keys[i].dim);
      const Rows<float> v = random_rows(random, sequences, values[i].heads, values[i].dim);
      keys[i].array.set(k.data);
      values[i].array.set(v.data);
      for (int s = 0; s < sequences; ++s)
        KVTILT_EXPECT_OK(both.cpu.append(open[static_cast<std::size_t>(s)].cpu, 2 * i, k.view(s, 1),
                                         v.view(s, 1)));
    }
    std::vector<std::int64_t> cut;
    for (int s = 0; s < sequences; ++s) {
      const SequenceId own = open[static_cast<std::size_t>(s)].cpu;
      cut.push_back(both.cpu.length(own).value() - (step % 50 < 2 ? 1 : 0));
      KVTILT_EXPECT_OK(both.cpu.truncate(own, cut.back()));
    }
    lengths.set(cut);
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaGraphLaunch(replay, stream));
    if (step % 2 == 0) {
      KVTILT_EXPECT_OK(both.gpu.note_appended(batch, ones, nullptr));
      KVTILT_EXPECT_OK(both.gpu.note_truncated(batch, cut, nullptr));
    } else {
      for (const SequenceId& id : ids) KVTILT_EXPECT_OK(both.gpu.refresh(id, stream));
    }
    expect_cuda(cudaStreamSynchronize(stream));
  }
  for (const BothIds& id : open) {
    EXPECT_TRUE(both.same(id));
    EXPECT_EQ(both.gpu.length(id.gpu, 2).value(), both.cpu.length(id.cpu, 2).value());
    EXPECT_EQ(both.gpu.length(id.gpu, 2, stream).value(), both.cpu.length(id.cpu, 2).value());
  }
  // The device refuses to fork what the host does not know.
  lengths.set(std::vector<std::int64_t>(sequences, 1000));
  expect_cuda(cudaDeviceSynchronize());
  expect_cuda(cudaGraphLaunch(replay, stream));
  const SequenceId child = both.gpu.fork(ids[0], 0, stream).value();
  EXPECT_EQ(both.gpu.poll(stream).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(both.gpu.length(child, 0, stream).value(), 0);
  KVTILT_EXPECT_OK(both.gpu.poll(stream));
  expect_cuda(cudaGraphExecDestroy(replay));
  expect_cuda(cudaGraphDestroy(graph));
  expect_cuda(cudaStreamDestroy(stream));
}

TEST(DeviceKVCacheHostile, UnpackingWhatIsNotThereIsRecorded) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(11);
  const CacheShape shape = two_layers();
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(100);
  both.append(id, random, 20);
  const DeviceRows<float> keys(10, 2, 64);
  EXPECT_EQ(both.gpu.unpack(id.gpu, 0, 0, keys.out(), keys.out(), nullptr).code(), ErrorCode::Ok);
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  EXPECT_EQ(both.gpu.unpack(id.gpu, 2, 0, keys.out(), {}, nullptr).code(),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(both.gpu.unpack(id.gpu, 0, std::int64_t{1} << 40, keys.out(), {}, nullptr).code(),
            ErrorCode::InvalidArgument);
  KVTILT_EXPECT_OK(both.gpu.unpack(id.gpu, 0, 15, keys.out(), {}, nullptr));
  const Status status = both.gpu.poll(nullptr);
  EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("position 20"));
}

TEST(DeviceKVCache, PromptsArePackedAsTheyAreAppended) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(12);
  for (const int window : {0, 100}) {
    const CacheShape shape = two_layers(128, 128, window);
    BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
    const BothIds id = both.open(2000);
    for (const std::int64_t tokens : {1000, 3, 31, 500, 64}) {
      both.append(id, random, tokens);
      EXPECT_TRUE(both.same(id));
    }
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  }
}

TEST(DeviceKVCacheHostile, BadValuesAreRecorded) {
  KVTILT_SKIP_WITHOUT_GPU();
  const CacheShape shape{{{2, 64, 64, 0}}};
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(300);
  Random random(7);
  both.append(id, random, 10);
  Rows<float> keys = random_rows(random, 5, 2, 64);
  Rows<float> values = random_rows(random, 5, 2, 64);
  values.at(3, 1, 7) = std::numeric_limits<float>::quiet_NaN();
  {
    const DeviceRows<float> k(keys);
    const DeviceRows<float> v(values);
    KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, k.view(), v.view(), nullptr));
    cuda::DeviceRecord record;
    const Status status = both.gpu.poll(nullptr, &record);
    EXPECT_EQ(status.code(), ErrorCode::InvalidValue);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("layer 0: value of sequence slot 0, position 13, kv head 1, channel 7"));
    EXPECT_EQ(record.fault, cuda::DeviceFault::ElementRepaired);
    EXPECT_EQ(static_cast<std::uint32_t>(record.sequence), id.gpu.slot);
    EXPECT_EQ(record.token, 13);
    EXPECT_EQ(record.count, 1u);
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr, &record));
    EXPECT_EQ(record.fault, cuda::DeviceFault::None);
  }
  values.at(3, 1, 7) = 0.0f;
  KVTILT_EXPECT_OK(both.cpu.append(id.cpu, 0, keys.view(), values.view()));
  EXPECT_TRUE(both.same(id));
  // Magnitudes beyond the format's largest are clamped.
  keys.at(0, 0, 3) = -std::numeric_limits<float>::infinity();
  keys.at(2, 1, 63) = 1e30f;
  const DeviceRows<float> k(keys);
  const DeviceRows<float> v(values);
  KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, k.view(), v.view(), nullptr));
  EXPECT_EQ(both.gpu.poll(nullptr).code(), ErrorCode::InvalidValue);
  const float limit = largest_magnitude(presets::k4v2.key);
  keys.at(0, 0, 3) = -limit;
  keys.at(2, 1, 63) = limit;
  KVTILT_EXPECT_OK(both.cpu.append(id.cpu, 0, keys.view(), values.view()));
  EXPECT_TRUE(both.same(id));
}

TEST(DeviceKVCacheHostile, ARequestsNaNDoesNotHideThatAnothersTokensWereRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  const CacheShape shape{{{2, 64, 64, 0}}};
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(300);
  const BothIds other = both.open(100);
  const DeviceRows<float> zeros(Rows<float>(400, 2, 64));
  Rows<float> rows(2, 2, 64);
  rows.at(1, 0, 0) = std::numeric_limits<float>::quiet_NaN();
  const DeviceRows<float> nan(rows);
  KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, nan.view(), nan.view(), nullptr));
  const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{0, 400});
  const cuda::SequenceBatch batch = both.gpu.batch(other.gpu).value();
  KVTILT_EXPECT_OK(  // no counts: the host cannot check the capacity
      both.gpu.append(batch, 0, zeros.view(), zeros.view(), indptr.data(), {}, nullptr));
  cuda::DeviceRecord record;
  EXPECT_EQ(both.gpu.poll(nullptr, &record).code(), ErrorCode::OutOfCapacity);
  EXPECT_EQ(static_cast<std::uint32_t>(record.sequence), other.gpu.slot);
  EXPECT_EQ(both.gpu.poll(nullptr, &record).code(), ErrorCode::InvalidValue);
  EXPECT_EQ(static_cast<std::uint32_t>(record.sequence), id.gpu.slot);
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
}

TEST(DeviceKVCacheHostile, WrongArgumentsChangeNothing) {
  KVTILT_SKIP_WITHOUT_GPU();
  const CacheShape shape = two_layers();
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(100);
  Random random(8);
  both.append(id, random, 60);
  const DeviceRows<float> keys(500, 2, 64);
  const DeviceRows<float> narrow(500, 2, 48);
  const auto code = [&](int layer, const TensorView& k, const TensorView& v) {
    return both.gpu.append(id.gpu, layer, k, v, nullptr).code();
  };
  EXPECT_EQ(code(1, keys.view(), keys.view()), ErrorCode::InvalidArgument);
  EXPECT_EQ(code(5, keys.view(), keys.view()), ErrorCode::InvalidArgument);
  EXPECT_EQ(code(0, keys.view(), narrow.view()), ErrorCode::InvalidArgument);
  EXPECT_EQ(code(0, {}, keys.view()), ErrorCode::InvalidArgument);
  EXPECT_EQ(code(0, keys.view(), keys.view()), ErrorCode::OutOfCapacity);
  EXPECT_EQ(both.gpu.append(SequenceId{3, 9}, 0, keys.view(), keys.view(), nullptr).code(),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(both.gpu.reserve(id.gpu, 1 << 20).code(), ErrorCode::InvalidArgument);
  EXPECT_TRUE(both.same(id));
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
}

TEST(DeviceKVCache, LivesInTheCallersMemory) {
  KVTILT_SKIP_WITHOUT_GPU();
  const CacheShape shape = two_layers();
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  cuda::CacheOptions options = few_pages();
  const std::size_t bytes = cuda::plan_memory(shape, plan, options).value().device_bytes();
  const DeviceArray<std::byte> memory(bytes + 512);
  expect_cuda(cudaMemset(memory.data(), 0x7e, bytes + 512));
  options.device_memory = memory.span().subspan(256, bytes - 1);
  EXPECT_EQ(cuda::KVCache::create(shape, plan, options).code(), ErrorCode::OutOfMemory);
  options.device_memory = memory.span().subspan(257, bytes + 3);
  EXPECT_THAT(std::string(cuda::KVCache::create(shape, plan, options).status().message()),
              HasSubstr("has " + std::to_string(bytes + 3 - 255) + " from the first multiple on"));
  options.device_memory = memory.span().subspan(256, bytes);
  {
    BothCaches both(shape, plan, options);
    EXPECT_EQ(both.gpu.memory().reserved_bytes, bytes);
    const BothIds id = both.open(600);
    Random random(9);
    both.append(id, random, 550);
    EXPECT_TRUE(both.same(id));
    EXPECT_EQ(both.gpu.memory(id.gpu).value().page_bytes,
              both.cpu.memory(id.cpu).value().page_bytes);
  }
  const std::vector<std::byte> after = memory.get();
  for (std::size_t i = 0; i < 256; ++i) {
    EXPECT_EQ(after[i], std::byte{0x7e});
    EXPECT_EQ(after[256 + bytes + i], std::byte{0x7e});
  }
}

}  // namespace
}  // namespace kvtilt::test
