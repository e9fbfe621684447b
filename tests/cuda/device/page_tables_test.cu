// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/page_tables.cuh>

#include "support.cuh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(DevicePageTables, PagesOfACacheThroughAnEnginesTables) {
  KVTILT_SKIP_WITHOUT_GPU();
  Random random(31);
  const CacheShape shape{{{2, 64, 64, 0}}};
  BothCaches both(shape, Plan::uniform(shape, presets::k4v2), few_pages());
  const BothIds long_one = both.open(300);
  const BothIds short_one = both.open(300);
  both.append(long_one, random, 4 + 32 * 5 + 40);
  both.append(short_one, random, 30);
  const cuda::LayerView layer = both.gpu.view(0).value();
  const DeviceArray<std::int32_t> slots(2);
  const std::vector<SequenceId> ids = {long_one.gpu, short_one.gpu};
  const cuda::SequenceBatch batch = both.gpu.batch(ids, slots.span()).value();

  const DeviceArray<std::int32_t> indptr(3), last(2), indices(8);
  KVTILT_EXPECT_OK(
      cuda::export_tables(layer, batch.device, {indptr.data(), last.data(), indices.data(), 8}));
  EXPECT_THAT(indptr.get(), ElementsAre(0, 5, 5));
  EXPECT_THAT(last.get(), ElementsAre(32, 0));
  KVTILT_EXPECT_OK(both.gpu.poll(nullptr));

  const DeviceArray<std::byte> workspace(cuda::import_workspace_bytes(2, 6));
  cuda::EngineTables tables;
  tables.sequences = 2;
  tables.indices = indices.data();
  tables.indptr = indptr.data();
  tables.last_page_tokens = last.data();
  const cuda::ImportedLayer imported =
      cuda::import_tables(layer, tables, layer.pool[static_cast<int>(PageKind::Sealed)], 128, 6,
                          workspace.span())
          .value();
  expect_cuda(cudaDeviceSynchronize());
  const auto states = read_device(imported.view.states, 2);
  EXPECT_EQ(states[0].length, 160);
  EXPECT_EQ(states[0].page_end, 5);
  EXPECT_EQ(states[1].length, 0);
  const auto theirs = read_device(imported.view.table(0), 5);
  const auto ours = read_device(layer.table(static_cast<int>(long_one.gpu.slot)), 5);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(theirs[i].page, ours[i].page);
    EXPECT_EQ(theirs[i].tokens, 32);
    EXPECT_EQ(theirs[i].first_position, static_cast<std::int64_t>(i) * 32);
  }
  const auto refusal = [&](std::byte* pool, int most_pages, std::span<std::byte> memory) {
    const auto refused = cuda::import_tables(layer, tables, pool, 128, most_pages, memory);
    EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument);
    return std::string(refused.message());
  };
  std::byte* const pool = layer.pool[static_cast<int>(PageKind::Sealed)];
  EXPECT_THAT(refusal(nullptr, 6, workspace.span()), HasSubstr("neither may be null"));
  EXPECT_THAT(refusal(pool + 1, 6, workspace.span()), HasSubstr("neither may be null"));
  EXPECT_THAT(refusal(pool, 60, workspace.span()), HasSubstr("2 sequences of 60 pages need"));
  EXPECT_THAT(refusal(pool, 0, workspace.span()), HasSubstr("both must be 1 at least"));

  // A truncated page in front of others cannot be exported.
  KVTILT_EXPECT_OK(both.gpu.truncate(long_one.gpu, 4 + 32 * 2 + 7));
  KVTILT_EXPECT_OK(both.cpu.truncate(long_one.cpu, 4 + 32 * 2 + 7));
  both.append(long_one, random, 100);
  KVTILT_EXPECT_OK(
      cuda::export_tables(layer, batch.device, {indptr.data(), last.data(), indices.data(), 8}));
  EXPECT_THAT(indptr.get(), ElementsAre(0, 0, 0));
  EXPECT_EQ(both.gpu.poll(nullptr).code(), ErrorCode::Unsupported);
  EXPECT_TRUE(both.same(long_one));
}

}  // namespace
}  // namespace kvtilt::test
