// SPDX-License-Identifier: MIT
// Batches that change after capture or creation: closed sequences, invalid rows, fewer sequences
// than at capture, and what the host is told of replays, right or wrong.
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include "graph.cuh"
#include "support.cuh"
#include "support/some_kernels.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

using testing::HasSubstr;

constexpr LayerShape batched_layer{2, 64, 64, 0};

/// Two caches of one layer, three sequences of 40 tokens each, and their batch.
struct Batched {
  BothCaches both{CacheShape{{batched_layer}},
                  Plan::uniform(CacheShape{{batched_layer}}, presets::k4v2), options()};
  Random random{31};
  std::vector<BothIds> open;
  std::vector<SequenceId> ids;
  DeviceArray<std::int32_t> memory{3};
  cuda::SequenceBatch batch{};

  Batched() {
    for (int i = 0; i < 3; ++i) {
      open.push_back(both.open(400));
      both.append(open.back(), random, 40);
      ids.push_back(open.back().gpu);
    }
    batch = both.gpu.batch(ids, memory.span()).value();
  }
  static cuda::CacheOptions options() {
    cuda::CacheOptions options = few_pages();
    options.page_tokens = 64;
    return options;
  }
  void expect_same() const {
    for (const BothIds& id : open) EXPECT_TRUE(both.same(id));
  }
};

TEST(DeviceBatchHostile, SequencesThatWereClosedAreRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  Batched cache;
  cuda::KVCache& gpu = cache.both.gpu;
  KVTILT_EXPECT_OK(gpu.close(cache.ids[1]));
  KVTILT_EXPECT_OK(cache.both.cpu.close(cache.open[1].cpu));
  cache.open[1] = cache.both.open(100);
  ASSERT_EQ(cache.open[1].gpu.slot, cache.ids[1].slot);
  const DeviceRows<float> rows(3, 2, 64);
  const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{0, 1, 2, 3});
  const auto append = [&](cudaStream_t stream) {
    return gpu.append(cache.batch, 0, rows.view(), rows.view(), indptr.data(), {}, stream);
  };
  EXPECT_EQ(append(nullptr).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(gpu.append(cache.batch, 0, rows.view(), rows.view()).code(),
            ErrorCode::InvalidArgument);
  const Graph graph(
      [&](cudaStream_t s) { EXPECT_EQ(append(s).code(), ErrorCode::InvalidArgument); });
  cache.expect_same();
}

TEST(DeviceBatchHostile, RowsThatCannotBeMeantAreNobodys) {
  KVTILT_SKIP_WITHOUT_GPU();
  Batched cache;
  cuda::KVCache& gpu = cache.both.gpu;
  const DeviceRows<float> few(3, 2, 64);
  const DeviceRows<float> many(300, 2, 64);
  constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min();
  for (const std::vector<std::int32_t>& starts : {std::vector<std::int32_t>{0, 3, 103, 103},
                                                  {0, -5, 3, 3},
                                                  {0, 3, 2, 3},
                                                  {0, 1, 2, least},
                                                  {-1, 1, 2, 3},
                                                  {0, 1, 2, 400}})
    for (const DeviceRows<float>* rows : {&few, &many}) {
      if (starts[2] == 103 && rows == &many) continue;  // here these rows exist
      const DeviceArray<std::int32_t> indptr(starts);
      KVTILT_EXPECT_OK(
          gpu.append(cache.batch, 0, rows->view(), rows->view(), indptr.data(), {}, nullptr));
      const Status status = gpu.poll(nullptr);
      EXPECT_EQ(status.code(), ErrorCode::Corrupt);
      EXPECT_THAT(std::string(status.message()), HasSubstr("layer 0: nothing was appended"));
      KVTILT_EXPECT_OK(gpu.poll(nullptr));
      cache.expect_same();
    }
  for (int i = 0; i < 3; ++i)
    cache.both.append(cache.open[static_cast<std::size_t>(i)], cache.random, 50);
  cache.expect_same();
}

TEST(DeviceBatch, AGraphIsReplayedForFewerSequences) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const int each : {1, 70}) {  // rows per sequence: append_kernel, pack_kernel
    Batched cache;
    cuda::KVCache& gpu = cache.both.gpu;
    const cuda::LayerView layer = gpu.view(0).value();
    const auto decode = cuda::Attention::create<SomeKernels>(batched_layer, presets::k4v2).value();
    const auto prefill =
        cuda::PrefillAttention::create<SomeKernels>(batched_layer, presets::k4v2).value();
    const int rows = 3 * each;
    const Rows<float> k = random_rows(cache.random, rows, 2, 64);
    const Rows<float> v = random_rows(cache.random, rows, 2, 64);
    const DeviceRows<float> keys(k);
    const DeviceRows<float> values(v);
    const DeviceRows<float> queries(random_rows(cache.random, rows, 4, 64));
    DeviceRows<float> decoded(rows, 4, 64);
    DeviceRows<float> prefilled(rows, 4, 64);
    DeviceArray<float> lse(static_cast<std::size_t>(rows * 4));
    const DeviceArray<std::byte> workspace(
        std::max(decode.workspace_bytes(), prefill.workspace_bytes()));
    KVTILT_EXPECT_OK(decode.prepare(workspace.span(), nullptr));
    std::vector<std::int32_t> starts;
    for (int i = 0; i <= 3; ++i) starts.push_back(i * each);
    const DeviceArray<std::int32_t> indptr(starts);
    const DeviceArray<std::int64_t> lengths(std::vector<std::int64_t>(3, 40 + each - 1));
    const Graph graph([&](cudaStream_t s) {
      KVTILT_EXPECT_OK(prefill.attend_prefill(layer, cache.batch.device, indptr.data(),
                                              queries.view(), keys.view(), values.view(),
                                              prefilled.out(), nullptr, {}, workspace.span(), s));
      KVTILT_EXPECT_OK(gpu.append(cache.batch, 0, keys.view(), values.view(), s));
      KVTILT_EXPECT_OK(decode.attend(layer, cache.batch.device, nullptr, queries.view(),
                                     decoded.out(), lse.data(), {}, workspace.span(), s));
      KVTILT_EXPECT_OK(gpu.truncate(cache.batch, lengths.data(), {}, s));
    });
    const auto step = [&](const std::vector<int>& who) {
      std::vector<SequenceId> ids;
      for (const int i : who) ids.push_back(cache.ids[static_cast<std::size_t>(i)]);
      const cuda::SequenceBatch batch = gpu.batch(ids, cache.memory.span()).value();
      for (DeviceRows<float>* out : {&decoded, &prefilled})
        out->array.set(std::vector<float>(static_cast<std::size_t>(rows * 4 * 64), 7.0f));
      lse.set(std::vector<float>(static_cast<std::size_t>(rows * 4), 7.0f));
      graph.replay();
      KVTILT_EXPECT_OK(gpu.poll(nullptr));
      for (std::size_t i = 0; i < who.size(); ++i) {
        const SequenceId own = cache.open[static_cast<std::size_t>(who[i])].cpu;
        const std::int64_t first = static_cast<std::int64_t>(i) * each;
        KVTILT_EXPECT_OK(cache.both.cpu.append(own, 0, k.view(first, each), v.view(first, each)));
        KVTILT_EXPECT_OK(cache.both.cpu.truncate(own, 40 + each - 1));
      }
      cache.expect_same();
      const std::vector<float> sums = lse.get();
      const Rows<float> outputs[] = {decoded.get(), prefilled.get()};
      for (int row = 0; row < rows; ++row) {
        const bool absent = row >= static_cast<int>(who.size()) * each;
        for (int head = 0; head < 4; ++head) {
          for (const Rows<float>& out : outputs)
            for (int channel = 0; channel < 64; ++channel) {
              const float x = out.at(row, head, channel);
              EXPECT_TRUE(absent ? x == 0.0f : x != 0.0f && x != 7.0f) << row;
              if (testing::Test::HasFailure()) return;
            }
          const float sum = sums[static_cast<std::size_t>(row * 4 + head)];
          EXPECT_EQ(sum == -std::numeric_limits<float>::infinity(), absent) << row;
        }
      }
    };
    step({0, 2});
    step({1});
    step({});
    step({2, 1, 0});
    if (testing::Test::HasFailure()) return;
  }
}

TEST(DeviceBatch, AGraphIsCapturedBeforeThereAreSequences) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int each = 3;
  Random random(34);
  BothCaches both(CacheShape{{batched_layer}},
                  Plan::uniform(CacheShape{{batched_layer}}, presets::k4v2), Batched::options());
  const DeviceArray<std::int32_t> memory(3);
  const cuda::SequenceBatch nobody = both.gpu.empty_batch(memory.span()).value();
  EXPECT_TRUE(nobody.ids.empty());
  EXPECT_EQ(nobody.device.count, 3);
  const Rows<float> k = random_rows(random, 3 * each, 2, 64);
  const Rows<float> v = random_rows(random, 3 * each, 2, 64);
  const DeviceRows<float> keys(k);
  const DeviceRows<float> values(v);
  const DeviceArray<std::int64_t> lengths(std::vector<std::int64_t>(3, 41));
  KVTILT_EXPECT_OK(both.gpu.append(nobody, 0, keys.view(), values.view()));  // as engines warm up
  const Graph graph([&](cudaStream_t s) {
    KVTILT_EXPECT_OK(both.gpu.append(nobody, 0, keys.view(), values.view(), s));
    KVTILT_EXPECT_OK(both.gpu.truncate(nobody, lengths.data(), {}, s));
  });
  std::vector<BothIds> open;
  for (int i = 0; i < 2; ++i) {
    open.push_back(both.open(400));
    both.append(open.back(), random, 40);
  }
  const auto expect_same = [&] {
    for (const BothIds& id : open) EXPECT_TRUE(both.same(id));
  };
  graph.replay();
  expect_same();
  const std::vector<SequenceId> ids = {open[1].gpu, open[0].gpu};
  const cuda::SequenceBatch batch = both.gpu.batch(ids, memory.span()).value();
  graph.replay();
  KVTILT_EXPECT_OK(both.gpu.note_appended(batch, std::vector<std::int32_t>(2, each), nullptr));
  KVTILT_EXPECT_OK(both.gpu.note_truncated(batch, std::vector<std::int64_t>(2, 41), nullptr));
  for (int i = 0; i < 2; ++i) {
    const SequenceId own = open[static_cast<std::size_t>(1 - i)].cpu;
    KVTILT_EXPECT_OK(both.cpu.append(own, 0, k.view(i * each, each), v.view(i * each, each)));
    KVTILT_EXPECT_OK(both.cpu.truncate(own, 41));
  }
  expect_same();
  for (const SequenceId& id : ids) EXPECT_EQ(both.gpu.length(id).value(), 41);
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));

  std::int32_t never_written;
  const std::span<std::int32_t> many(&never_written, std::size_t{65537});
  EXPECT_EQ(both.gpu.empty_batch(many).code(), ErrorCode::InvalidArgument);
  const std::span<std::int32_t> null(static_cast<std::int32_t*>(nullptr), std::size_t{4});
  EXPECT_THAT(std::string(both.gpu.empty_batch(null).message()), HasSubstr("memory is null"));
  EXPECT_THAT(std::string(both.gpu.batch(ids, null).message()), HasSubstr("memory is null"));
}

TEST(DeviceBatchHostile, WhatNoReplayCanHaveDoneIsRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  Batched cache;
  cuda::KVCache& gpu = cache.both.gpu;
  const auto lengths_are = [&](std::int64_t length) {
    for (const SequenceId& id : cache.ids) EXPECT_EQ(gpu.length(id).value(), length);
  };
  using Counts = std::vector<std::int32_t>;
  using Lengths = std::vector<std::int64_t>;
  EXPECT_EQ(gpu.note_appended(cache.batch, Counts{1, 1, -1}, nullptr).code(),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(gpu.note_appended(cache.batch, Counts{1, 1}, nullptr).code(),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(gpu.note_appended(cache.batch, Counts{1, 1, 500}, nullptr).code(),
            ErrorCode::OutOfCapacity);
  EXPECT_EQ(gpu.note_truncated(cache.batch, Lengths{39, 39, -1}, nullptr).code(),
            ErrorCode::InvalidArgument);
  lengths_are(40);
  KVTILT_EXPECT_OK(gpu.note_appended(cache.batch, Counts{1, 1, 1}, nullptr));
  lengths_are(41);
  KVTILT_EXPECT_OK(gpu.note_truncated(cache.batch, Lengths{41, 99, 1000}, nullptr));
  lengths_are(41);  // truncation beyond the end cuts nothing
  KVTILT_EXPECT_OK(gpu.note_truncated(cache.batch, Lengths{40, 40, 40}, nullptr));
  lengths_are(40);
}

/// A layer with a window, whose pages a fork shares. The tests make a call that the host accepts
/// and the device refuses: the host then releases pages, which the next sequence gets.
struct SharedWindow {
  BothCaches both;
  Random random{33};
  BothIds id;
  SequenceId child;

  SharedWindow() : both(shape(), Plan::uniform(shape(), presets::k4v2), options()) {
    id = both.open(300);
    both.append(id, random, 64);
    child = both.gpu.fork(id.gpu).value();
  }
  static CacheShape shape() {
    LayerShape windowed = batched_layer;
    windowed.window = 64;
    return {{windowed}};
  }
  static cuda::CacheOptions options() {
    cuda::CacheOptions options = few_pages();
    options.sink_tokens = options.recent_tokens = 0;
    return options;
  }
  [[nodiscard]] std::vector<cuda::PageSlot> table(SequenceId of) const {
    const cuda::LayerView layer = both.gpu.view(0).value();
    const cuda::SequenceState state = read_device(layer.states + of.slot, 1)[0];
    return read_device(layer.table(static_cast<int>(of.slot)),
                       static_cast<std::size_t>(state.page_capacity));
  }
  void expect_no_page_of_another(std::int64_t length) {
    KVTILT_EXPECT_OK(both.gpu.close(child));
    const BothIds other = both.open(300);
    both.append(other, random, 100);
    for (const cuda::PageSlot& mine : table(id.gpu))
      for (const cuda::PageSlot& theirs : table(other.gpu)) EXPECT_NE(mine.page, theirs.page);
    KVTILT_EXPECT_OK(both.gpu.refresh(id.gpu, nullptr));
    EXPECT_EQ(both.gpu.length(id.gpu).value(), length);
    EXPECT_TRUE(both.same(other));
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
  }
};

TEST(DeviceBatchHostile, PagesOfARefusedAppendAreNotKept) {
  KVTILT_SKIP_WITHOUT_GPU();
  SharedWindow cache;
  const DeviceRows<float> rows(random_rows(cache.random, 128, 2, 64));
  const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{1, 0});
  KVTILT_EXPECT_OK(cache.both.gpu.append(cache.both.gpu.batch(cache.id.gpu).value(), 0, rows.view(),
                                         rows.view(), indptr.data(),
                                         std::vector<std::int32_t>{128}));
  EXPECT_EQ(cache.both.gpu.poll(nullptr).code(), ErrorCode::Corrupt);
  cache.expect_no_page_of_another(64);
}

TEST(DeviceBatchHostile, PagesOfWhatIsToldWronglyAreNotKept) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const bool cut : {true, false}) {
    SharedWindow cache;
    cuda::KVCache& gpu = cache.both.gpu;
    const cuda::SequenceBatch batch = gpu.batch(cache.id.gpu).value();
    if (cut) {  // an append that the host does not know moves the window past the cut
      const DeviceRows<float> rows(random_rows(cache.random, 32, 2, 64));
      const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{0, 32});
      const DeviceArray<std::int64_t> length(std::vector<std::int64_t>{32});
      KVTILT_EXPECT_OK(gpu.append(batch, 0, rows.view(), rows.view(), indptr.data(), {}));
      KVTILT_EXPECT_OK(gpu.truncate(batch, length.data(), {}));
      EXPECT_EQ(gpu.poll(nullptr).code(), ErrorCode::InvalidArgument);
      KVTILT_EXPECT_OK(gpu.note_truncated(batch, std::vector<std::int64_t>{32}, nullptr));
    } else {
      KVTILT_EXPECT_OK(gpu.note_appended(batch, std::vector<std::int32_t>{128}, nullptr));
    }
    cache.expect_no_page_of_another(cut ? 96 : 64);
  }
}

TEST(DeviceKVCache, TellsASchedulerWhatIsLeft) {
  KVTILT_SKIP_WITHOUT_GPU();
  BothCaches both(CacheShape{{batched_layer, {}}},
                  Plan::uniform(CacheShape{{batched_layer, {}}}, presets::k4v2), few_pages());
  cuda::KVCache& gpu = both.gpu;
  const std::int64_t pages = 4096 / 32;
  EXPECT_EQ(gpu.free_pages(0).value(), pages);
  EXPECT_EQ(gpu.free_pages(1).code(), ErrorCode::InvalidArgument);
  const SequenceId id = gpu.open().value();
  EXPECT_EQ(gpu.reserved_tokens(id).value(), 4 + 40 + 31);  // before any page is reserved
  KVTILT_EXPECT_OK(gpu.reserve(id, 100));
  EXPECT_EQ(gpu.free_pages(0).value(), pages - 1);
  EXPECT_EQ(gpu.reserved_tokens(id).value(), 4 + 40 + 32 + 31);
  Random random(32);
  const DeviceRows<float> rows(random_rows(random, 107, 2, 64));
  KVTILT_EXPECT_OK(gpu.append(id, 0, rows.view(), rows.view()));
  EXPECT_EQ(gpu.reserved_tokens(id).value(), 107);
  KVTILT_EXPECT_OK(gpu.reserve(id, 2048));
  EXPECT_EQ(gpu.reserved_tokens(id).value(), 2048) << "max_sequence_tokens";
  KVTILT_EXPECT_OK(gpu.close(id));
  EXPECT_EQ(gpu.free_pages(0).value(), pages);
  EXPECT_EQ(gpu.reserved_tokens(id).code(), ErrorCode::InvalidArgument);
  KVTILT_EXPECT_OK(gpu.poll(nullptr));
}

}  // namespace
}  // namespace kvtilt::test
