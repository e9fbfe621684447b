// SPDX-License-Identifier: MIT
// An engine's own page pool, packed by pack_pages() and attended to, against float64.
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/cache/pack_pages.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "attended.cuh"
#include "support/page_data.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

constexpr int pool_pages = 8;
constexpr int page_tokens = 64;

TEST(DevicePackPages, AnEnginesPoolIsFilledAndAttendedTo) {
  KVTILT_SKIP_WITHOUT_GPU();
  for (const Recipe& recipe : {presets::k4v2, presets::kivi2}) {
    Random random(41);
    Attended cache(recipe);
    const cuda::LayerView layer = cache.layer();
    const Rows<float> keys = random_rows(random, 4 * page_tokens, 2, 64, 1.0f, 0.5f);
    const Rows<float> values = random_rows(random, 4 * page_tokens, 2, 64);
    const DeviceRows<float> k(keys);
    const DeviceRows<float> v(values);
    const DeviceArray<std::int32_t> indices(std::vector<std::int32_t>{5, 0, 2, 7});
    const std::size_t page_bytes =
        static_cast<std::size_t>(layer.block_bytes[static_cast<int>(PageKind::Sealed)]);
    const DeviceArray<std::byte> pool(pool_pages * page_bytes);
    const DeviceArray<std::int32_t> order(std::vector<std::int32_t>{2, 0, 3, 1});
    const DeviceArray<std::int32_t> places(std::vector<std::int32_t>{2, 5, 7, 0});
    KVTILT_EXPECT_OK(cuda::pack_pages(layer, k.view(), v.view(), {0, 0, order.data(), 4},
                                      places.data(), pool.data(), pool_pages));

    const DeviceArray<std::int32_t> indptr(std::vector<std::int32_t>{0, 3, 4});
    const DeviceArray<std::int32_t> last(std::vector<std::int32_t>{page_tokens, 20});
    const DeviceArray<std::byte> tables(cuda::import_workspace_bytes(2, 3));
    cuda::EngineTables engine;
    engine.sequences = 2;
    engine.indices = indices.data();
    engine.indptr = indptr.data();
    engine.last_page_tokens = last.data();
    const cuda::ImportedLayer imported =
        cuda::import_tables(layer, engine, pool.data(), pool_pages, 3, tables.span()).value();
    const cuda::Attention attention = make_attention(recipe);
    const Rows<float> queries = random_queries(random, attended_layer, 2, gqa_ratio);
    const Outputs arrays(queries, attention.workspace_bytes());
    KVTILT_EXPECT_OK(attention.prepare(arrays.workspace.span(), nullptr));
    KVTILT_EXPECT_OK(attention.attend(imported.view, imported.batch, nullptr, arrays.queries.view(),
                                      arrays.out.out(), arrays.lse.data(), {},
                                      arrays.workspace.span(), nullptr));
    const Output output = arrays.get();
    KVTILT_EXPECT_OK(cache.both.gpu.poll(nullptr));

    const LayerPages cpu = LayerPages::create(attended_layer, {recipe}, page_tokens).value();
    Block block(cpu.bytes(PageKind::Tail));
    std::vector<PageEntry> entries;
    std::vector<std::unique_ptr<Block>> pages;
    for (int page = 0; page < 4; ++page) {
      pages.push_back(std::make_unique<Block>(page_bytes));
      KVTILT_EXPECT_OK(cpu.write(keys.view(page * page_tokens, page_tokens),
                                 values.view(page * page_tokens, page_tokens), 0, block.data()));
      KVTILT_EXPECT_OK(cpu.seal(block.data(), pages.back()->data()));
      const bool other = page == 3;
      entries.push_back({pages.back()->data(), other ? 0 : page * page_tokens,
                         other ? 20 : page_tokens, PageKind::Sealed});
    }
    std::vector<LayerView> views;  // nvcc rejects an initializer list here
    views.push_back(cpu.view({entries.data(), 3}, 3 * page_tokens).value());
    views.push_back(cpu.view({entries.data() + 3, 1}, 20).value());
    EXPECT_TRUE(is_close(views, queries, AttendOptions{}, output)) << to_string(recipe);
  }
}

TEST(DevicePackPagesHostile, WhatCannotBeMeantIsRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  const Attended cache(presets::k4v2);
  const cuda::LayerView layer = cache.layer();
  const DeviceArray<std::int32_t> pages(std::vector<std::int32_t>{1});
  std::byte* const pool = layer.pool[static_cast<int>(PageKind::Sealed)];
  const auto refusal = [&](int rows, int dim, const std::int32_t* where, std::byte* to, int room) {
    const DeviceRows<float> k(rows, 2, dim);
    const DeviceRows<float> v(rows, 2, 64);
    const Status status = cuda::pack_pages(layer, k.view(), v.view(), {}, where, to, room);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    return std::string(status.message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal(64, 48, pages.data(), pool, 8), HasSubstr("expected [n, 2, 64]"));
  EXPECT_THAT(refusal(63, 64, pages.data(), pool, 8), HasSubstr("63 rows do not fill pages of 64"));
  EXPECT_THAT(refusal(64, 64, nullptr, pool, 8), HasSubstr("neither may be null"));
  EXPECT_THAT(refusal(64, 64, pages.data(), nullptr, 8), HasSubstr("neither may be null"));
  EXPECT_THAT(refusal(64, 64, pages.data(), pool + 16, 8), HasSubstr("off a multiple of 64"));
  EXPECT_THAT(refusal(64, 64, pages.data(), pool, 0), HasSubstr("nor the pool empty"));
}

TEST(DevicePackPages, PagesThatDoNotFitABlockAreRefused) {
  KVTILT_SKIP_WITHOUT_GPU();
  const CacheShape shape{{{1, 576, 512, 0}}};
  cuda::CacheOptions options;
  options.page_tokens = 128;
  options.token_capacity = 1024;
  options.max_sequences = 1;
  const auto gpu = cuda::KVCache::create(shape, Plan::uniform(shape, presets::k4v2), options);
  ASSERT_TRUE(gpu.ok()) << gpu.message();
  const cuda::LayerView layer = gpu->view(0).value();
  const DeviceArray<std::int32_t> pages(std::vector<std::int32_t>{1});
  const DeviceRows<float> k(128, 1, 576);
  const DeviceRows<float> v(128, 1, 512);
  const Status status = cuda::pack_pages(layer, k.view(), v.view(), {}, pages.data(),
                                         layer.pool[static_cast<int>(PageKind::Sealed)], 8);
  EXPECT_EQ(status.code(), ErrorCode::Unsupported);
  EXPECT_THAT(status.message(), testing::HasSubstr("bytes of shared memory"));
}

}  // namespace
}  // namespace kvtilt::test
