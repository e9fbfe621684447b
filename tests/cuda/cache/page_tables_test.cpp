// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/page_tables.hpp>

#include "support/emulated_threads.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using testing::ElementsAre;

constexpr int most_pages = 4;
constexpr int pool_pages = 10;

struct Import {
  DeviceRecords records{};
  std::vector<std::max_align_t> workspace;
  ImportedLayer layer{};

  explicit Import(const EngineTables& tables)
      : workspace(import_workspace_bytes(tables.sequences, most_pages) / sizeof(std::max_align_t) +
                  1) {
    LayerView view{};
    view.page_tokens = 32;
    view.sink_tokens = 4;
    view.recent_tokens = 100;
    view.ring_blocks = 5;
    view.records = &records;
    layer = imported_layer(view, nullptr, tables.sequences, most_pages,
                           reinterpret_cast<std::byte*>(workspace.data()));
    test::emulate(2, 32, 0, [&](EmulatedThreads& threads) {
      import_tables_body(threads, layer.view, const_cast<std::int32_t*>(layer.batch.slots), tables,
                         pool_pages);
    });
  }
  [[nodiscard]] const SequenceState& state(int i) const { return layer.view.states[i]; }
};

TEST(PageTables, DenseAndCsrMeanTheSame) {
  const std::int32_t dense_indices[] = {5, 3, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1};
  const std::int32_t lengths[] = {40, 32, 0};
  const std::int32_t csr_indices[] = {5, 3, 7};
  const std::int32_t indptr[] = {0, 2, 3, 3};
  const std::int32_t last[] = {8, 32, 0};
  const Import dense({3, dense_indices, 4, lengths, nullptr, nullptr});
  const Import csr({3, csr_indices, 0, nullptr, indptr, last});
  for (const Import* import : {&dense, &csr}) {
    EXPECT_EQ(import->records.refused.fault, cuda::DeviceFault::None);
    EXPECT_EQ(import->state(0).length, 40);
    EXPECT_EQ(import->state(0).tail_start, 40);
    EXPECT_EQ(import->state(0).page_end, 2);
    EXPECT_EQ(import->state(1).length, 32);
    EXPECT_EQ(import->state(2).length, 0);
    EXPECT_EQ(import->state(2).page_end, 0);
    const PageSlot* table = import->layer.view.table(0);
    EXPECT_EQ(table[0].page, 5);
    EXPECT_EQ(table[0].tokens, 32);
    EXPECT_EQ(table[1].page, 3);
    EXPECT_EQ(table[1].tokens, 8);
    EXPECT_EQ(table[1].first_position, 32);
    EXPECT_EQ(import->layer.view.table(1)[0].page, 7);
    EXPECT_EQ(import->layer.view.sink_tokens, 0);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(import->layer.batch.slots[i], i);
  }
}

TEST(PageTables, TailsOfTheEngineComeBehindThePages) {
  const std::int32_t indices[] = {5, 3, 7, 1};
  const std::int32_t lengths[] = {40, 32};
  const std::int32_t tails[] = {9, -1};
  const Import import(
      {.sequences = 2, .indices = indices, .stride = 2, .lengths = lengths, .tail_tokens = tails});
  EXPECT_EQ(import.state(0).length, 40);
  EXPECT_EQ(import.state(0).next_position(), 49);
  EXPECT_EQ(import.state(1).length, 0);
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::BadTable);
}

TEST(PageTablesHostile, WhatCannotBeMeantIsEmptyAndRecorded) {
  const std::int32_t indices[] = {5, 3, 10, 4, 7, 7, 7, 7, 0, 1, 2, 3, 0, -1, 0, 0};
  const std::int32_t lengths[] = {70, 129, -1, 64};
  const Import import({4, indices, 4, lengths, nullptr, nullptr});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(import.state(i).length, 0) << i;
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::BadTable);
  EXPECT_EQ(import.records.refused.count, 4u);
  const std::int32_t indptr[] = {0, 2, 1, 6};
  const std::int32_t last[] = {33, 1, 1};
  const Import csr({3, indices, 0, nullptr, indptr, last});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(csr.state(i).length, 0) << i;
  EXPECT_EQ(csr.records.refused.count, 3u);
}

struct Export {
  std::vector<std::int32_t> indptr, last, indices;

  Export(const LayerView& view, const Batch& batch, int capacity)
      : indptr(static_cast<std::size_t>(batch.count) + 1, -1),
        last(static_cast<std::size_t>(batch.count), -1),
        indices(static_cast<std::size_t>(capacity), -1) {
    test::emulate(1, 64, 0, [&](EmulatedThreads& threads) {
      export_tables_body(threads, view, batch,
                         {indptr.data(), last.data(), indices.data(), capacity});
    });
  }
};

TEST(PageTables, ComeBackAsTheyWere) {
  const std::int32_t indices[] = {5, 3, 7};
  const std::int32_t indptr[] = {0, 2, 2, 3};
  const std::int32_t last[] = {8, 0, 32};
  Import import({3, indices, 0, nullptr, indptr, last});
  const Export all(import.layer.view, import.layer.batch, 3);
  EXPECT_THAT(all.indptr, ElementsAre(0, 2, 2, 3));
  EXPECT_THAT(all.last, ElementsAre(8, 0, 32));
  EXPECT_THAT(all.indices, ElementsAre(5, 3, 7));
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::None);

  const std::int32_t padded[] = {2, -1, 0};
  const Export some(import.layer.view, {padded, 3}, 3);
  EXPECT_THAT(some.indptr, ElementsAre(0, 1, 1, 3));
  EXPECT_THAT(some.last, ElementsAre(32, 0, 8));
  EXPECT_THAT(some.indices, ElementsAre(7, 5, 3));
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::None);

  const Export narrow(import.layer.view, import.layer.batch, 2);
  EXPECT_THAT(narrow.indptr, ElementsAre(0, 2, 2, 2));
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::NoRoomForIndices);

  import.records = {};
  import.layer.view.table(0)[0].tokens = 31;
  const Export cut(import.layer.view, import.layer.batch, 3);
  EXPECT_THAT(cut.indptr, ElementsAre(0, 0, 0, 1));
  EXPECT_EQ(cut.indices[0], 7);
  EXPECT_EQ(import.records.refused.fault, cuda::DeviceFault::PageNotFull);
  EXPECT_EQ(import.records.refused.sequence, 0);
}

}  // namespace
}  // namespace kvtilt::cuda
