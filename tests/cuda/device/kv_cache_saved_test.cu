// SPDX-License-Identifier: MIT
/// Sequences saved by the device cache and loaded by the host's, and vice versa.
#include "graph.cuh"
#include "support.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

using testing::HasSubstr;

TEST(DeviceKVCacheSaved, EitherCacheLoadsWhatTheOtherSaved) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(1);
  struct Kind {
    const char* recipe;
    int page_tokens;
  };
  for (const Kind& kind :
       {Kind{"k4v2", 64}, {"k16v16", 32}, {"k3tv5c", 128}, {"k8v1", 32}, {"k7v6", 64}}) {
    SCOPED_TRACE(kind.recipe);
    const int window = kind.page_tokens == 64 ? 150 : 0;
    const CacheShape shape = two_layers(64, 128, window);
    cuda::CacheOptions options = few_pages();
    options.page_tokens = kind.page_tokens;
    options.fingerprint = 0x0123456789abcdef;
    BothCaches both(shape, Plan::uniform(shape, parse_recipe(kind.recipe).value()), options);
    const BothIds id = both.open(900);
    both.append(id, random, 500);
    const std::int64_t cut = window == 0 ? 430 : 480;  // without a window: inside a page
    KVTILT_EXPECT_OK(both.gpu.truncate(id.gpu, cut));
    KVTILT_EXPECT_OK(both.cpu.truncate(id.cpu, cut));
    both.append(id, random, 77);

    const std::vector<std::byte> host = saved(both.cpu, id.cpu);
    ASSERT_EQ(both.gpu.saved_bytes(id.gpu).value(), host.size());
    const PinnedBytes image(std::vector<std::byte>(host.size(), std::byte{0xa5}));
    KVTILT_EXPECT_OK(both.gpu.save(id.gpu, image.span()));
    EXPECT_TRUE(std::equal(host.begin(), host.end(), image.span().begin()));

    const PinnedBytes pinned(host);
    const BothIds other{both.gpu.load(pinned.span(), 900).value(),
                        both.cpu.load(image.span(), 900).value()};
    EXPECT_TRUE(both.same(other));
    both.append(other, random, 300);
    EXPECT_TRUE(both.same(other));
    EXPECT_TRUE(both.same(id));
    KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
    if (testing::Test::HasFailure()) return;
  }
}

// A request that must wait is saved and closed, so that another one can use its pages.
TEST(DeviceKVCacheSaved, MakesRoomForOthersAndComesBack) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(2);
  const CacheShape shape = two_layers();
  cuda::CacheOptions options = few_pages();
  options.token_capacity = 640;
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), options);
  BothIds waiting = both.open(600);
  both.append(waiting, random, 600);
  const BothIds urgent = both.open(0);
  ASSERT_EQ(both.gpu.reserve(urgent.gpu, 600).code(), ErrorCode::OutOfMemory);

  const PinnedBytes image(both.gpu.saved_bytes(waiting.gpu).value());
  KVTILT_EXPECT_OK(both.gpu.save(waiting.gpu, image.span()));
  KVTILT_EXPECT_OK(both.gpu.close(waiting.gpu));
  KVTILT_EXPECT_OK(both.gpu.reserve(urgent.gpu, 600));
  KVTILT_EXPECT_OK(both.cpu.reserve(urgent.cpu, 600));
  both.append(urgent, random, 600);
  EXPECT_EQ(both.gpu.load(image.span()).code(), ErrorCode::OutOfMemory);
  EXPECT_TRUE(both.same(urgent));
  KVTILT_EXPECT_OK(both.gpu.close(urgent.gpu));

  waiting.gpu = both.gpu.load(image.span()).value();
  EXPECT_TRUE(both.same(waiting));
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));
}

TEST(DeviceKVCacheSaved, SavesWhatAGraphAppendedAndNobodyTold) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(3);
  const CacheShape shape{{{2, 64, 64, 0}}};
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(300);
  both.append(id, random, 100);
  const Rows<float> rows = random_rows(random, 80, 2, 64);
  const DeviceRows<float> device(rows);
  const Graph graph([&](cudaStream_t stream) {
    KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, device.view(), device.view(), stream));
  });
  graph.replay();
  KVTILT_EXPECT_OK(both.cpu.append(id.cpu, 0, rows.view(), rows.view()));
  const PinnedBytes wrong(both.gpu.saved_bytes(id.gpu).value());
  EXPECT_EQ(both.gpu.save(id.gpu, wrong.span()).code(), ErrorCode::InvalidArgument);
  const std::vector<std::byte> host = saved(both.cpu, id.cpu);
  ASSERT_EQ(both.gpu.saved_bytes(id.gpu).value(), host.size());  // save() has read the length
  const PinnedBytes image(host.size());
  KVTILT_EXPECT_OK(both.gpu.save(id.gpu, image.span()));
  EXPECT_TRUE(std::equal(host.begin(), host.end(), image.span().begin()));
}

TEST(DeviceKVCacheSavedHostile, WrongImagesChangeNothing) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(4);
  const CacheShape shape = two_layers();
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds id = both.open(300);
  both.append(id, random, 300);
  const std::size_t bytes = both.gpu.saved_bytes(id.gpu).value();
  const std::int64_t free = both.gpu.free_pages(0).value();
  const PinnedBytes image(bytes + 64);
  const std::span<std::byte> exact = image.span().first(bytes);

  std::vector<std::byte> pageable(bytes + 16);
  const DeviceArray<std::byte> on_device(bytes);
  for (const std::span<std::byte> wrong : {std::span<std::byte>(pageable).first(bytes),
                                           on_device.span(), image.span().subspan(8, bytes)}) {
    const Status status = both.gpu.save(id.gpu, wrong);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("must be pinned or managed memory"));
    EXPECT_EQ(both.gpu.load(wrong).code(), ErrorCode::InvalidArgument);
  }
  for (const std::size_t size : {std::size_t{0}, bytes - 64, bytes + 64})
    EXPECT_EQ(both.gpu.save(id.gpu, image.span().first(size)).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(both.gpu.save({5, 5}, exact).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(both.gpu.load({}).code(), ErrorCode::InvalidArgument);

  KVTILT_EXPECT_OK(both.gpu.save(id.gpu, exact));
  EXPECT_EQ(both.gpu.load(image.span()).code(), ErrorCode::Corrupt);
  EXPECT_EQ(both.gpu.load(exact.first(bytes - 64)).code(), ErrorCode::Corrupt);
  exact[bytes / 2] ^= std::byte{1};
  EXPECT_EQ(both.gpu.load(exact).code(), ErrorCode::Corrupt);
  exact[bytes / 2] ^= std::byte{1};
  EXPECT_EQ(both.gpu.load(exact, 1 << 20).code(), ErrorCode::InvalidArgument);
  BothCaches other(shape, Plan::uniform(shape, presets::k4v4), few_pages());
  EXPECT_THAT(std::string(other.gpu.load(exact).message()),
              HasSubstr("values have 2 bits per token"));
  {
    const Graph graph([&](cudaStream_t stream) {
      EXPECT_THAT(std::string(both.gpu.save(id.gpu, exact, stream).message()),
                  HasSubstr("save cannot be captured"));
      EXPECT_THAT(std::string(both.gpu.load(exact, 0, stream).message()),
                  HasSubstr("load cannot be captured"));
    });
  }
  EXPECT_EQ(both.gpu.free_pages(0).value(), free);
  EXPECT_TRUE(both.same(id));

  const DeviceRows<float> row(1, 2, 64);
  KVTILT_EXPECT_OK(both.gpu.reserve(id.gpu, 400));
  KVTILT_EXPECT_OK(both.gpu.append(id.gpu, 0, row.view(), row.view(), nullptr));
  EXPECT_THAT(std::string(both.gpu.saved_bytes(id.gpu).message()),
              HasSubstr("cannot save: layer 2"));
  EXPECT_THAT(std::string(both.gpu.save(id.gpu, exact).message()), HasSubstr("cannot save"));
}

}  // namespace
}  // namespace kvtilt::test
