// SPDX-License-Identifier: MIT
/// Sequences that share pages, and pages taken out of the middle.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/attend_check.hpp"
#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// Two layers; sinks at 0 to 3, pages from 4, 36, 68 ... on, the newest 16 tokens (or more) in the
/// tail.
class KVCacheFork : public testing::Test {
 protected:
  static CacheOptions options() {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = 16;
    return options;
  }
  static KVCache make(const CacheOptions& options = KVCacheFork::options()) {
    const CacheShape shape = CacheShape::uniform(2, 2, 32);
    return test::make_cache(shape, Plan::uniform(shape, presets::k4v2), options);
  }

  static void append(KVCache& cache, SequenceId id, const Rows<float>& rows, std::int64_t first,
                     std::int64_t count) {
    for (int layer = 0; layer < 2; ++layer)
      KVTILT_EXPECT_OK(cache.append(id, layer, rows.view(first, count), rows.view(first, count)));
  }

  /// The sequence equals one with the same tokens that shares no pages.
  static void expect_alone(const KVCache& cache, SequenceId id, const Rows<float>& rows) {
    KVCache other = make();
    const SequenceId alone = test::open_reserved(other, rows.tokens);
    append(other, alone, rows, 0, rows.tokens);
    for (int layer = 0; layer < 2; ++layer)
      EXPECT_TRUE(
          test::same_content(cache.view(id, layer).value(), other.view(alone, layer).value()));
  }

  /// The first `count` of these rows, then `more`.
  static Rows<float> joined(const Rows<float>& rows, std::int64_t count, const Rows<float>& more) {
    Rows<float> all(count + more.tokens, rows.heads, rows.dim);
    std::copy_n(rows.data.begin(), rows.view(count, 0).row<float>(0, 0) - rows.data.data(),
                all.data.begin());
    std::copy(more.data.begin(), more.data.end(), &all.at(count, 0, 0));
    return all;
  }

  Random random_{1};
  Rows<float> rows_ = random_rows(random_, 150, 2, 32);
  KVCache cache_ = make();
  SequenceId parent_ = test::open_reserved(cache_, 300);
};

TEST_F(KVCacheFork, SharesSealedPagesAndCopiesTheRest) {
  append(cache_, parent_, rows_, 0, 150);
  const std::size_t before = cache_.memory().reserved_bytes;
  const SequenceId child = cache_.fork(parent_).value();
  for (int layer = 0; layer < 2; ++layer) {
    const LayerView one = cache_.view(parent_, layer).value();
    const LayerView other = cache_.view(child, layer).value();
    EXPECT_TRUE(test::same_content(one, other));
    for (std::int32_t i = 0; i < one.page_count; ++i)
      EXPECT_EQ(one.pages[i].data == other.pages[i].data, one.pages[i].kind == PageKind::Sealed)
          << "page " << i;
  }
  // Per layer: 4 pages are shared; 1 block of sinks, 2 of the tail and the tables are copied.
  const LayerView view = cache_.view(child, 0).value();
  EXPECT_LT(
      cache_.memory().reserved_bytes - before,
      2 * (test::block_bytes(view, PageKind::Sinks) + 2 * test::block_bytes(view, PageKind::Tail)) +
          4096);
}

TEST_F(KVCacheFork, BothGoOnAsIfAlone) {
  append(cache_, parent_, rows_, 0, 150);
  const SequenceId child = cache_.fork(parent_, 280).value();
  const Rows<float> ours = random_rows(random_, 100, 2, 32);
  const Rows<float> theirs = random_rows(random_, 130, 2, 32);
  append(cache_, parent_, ours, 0, 60);
  append(cache_, child, theirs, 0, 130);
  append(cache_, parent_, ours, 60, 40);
  expect_alone(cache_, parent_, joined(rows_, 150, ours));
  expect_alone(cache_, child, joined(rows_, 150, theirs));
}

TEST_F(KVCacheFork, SharedPagesLiveUntilTheLastLetsGo) {
  append(cache_, parent_, rows_, 0, 150);
  const SequenceId child = cache_.fork(parent_).value();
  const SequenceId grandchild = cache_.fork(child).value();
  KVTILT_EXPECT_OK(cache_.close(parent_));
  KVTILT_EXPECT_OK(cache_.truncate(child, 3));
  const SequenceId next = test::open_reserved(cache_, 300);  // writes into all memory that is free
  append(cache_, next, random_rows(random_, 300, 2, 32), 0, 300);
  expect_alone(cache_, grandchild, rows_);
  const std::size_t reserved = cache_.memory().reserved_bytes;
  KVTILT_EXPECT_OK(cache_.close(grandchild));
  KVTILT_EXPECT_OK(cache_.close(child));
  test::open_reserved(cache_, 150);  // reuses the blocks of both
  EXPECT_LT(cache_.memory().reserved_bytes, reserved + 4096);
}

TEST_F(KVCacheFork, WhoLosesASharedPageReservesAgain) {
  KVTILT_EXPECT_OK(cache_.close(parent_));
  parent_ = test::open_reserved(cache_, 150);
  append(cache_, parent_, rows_, 0, 150);
  const SequenceId child = cache_.fork(parent_).value();
  KVTILT_EXPECT_OK(cache_.truncate(parent_, 4));
  const test::Snapshot before(cache_.view(parent_, 0).value());
  const Status refused = cache_.append(parent_, 0, rows_.view(4, 146), rows_.view(4, 146));
  EXPECT_EQ(refused.code(), ErrorCode::OutOfCapacity);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("reserve again"));
  EXPECT_TRUE(test::unchanged(before, cache_.view(parent_, 0).value()));
  KVTILT_EXPECT_OK(cache_.reserve(parent_, 150));
  append(cache_, parent_, rows_, 4, 146);
  expect_alone(cache_, parent_, rows_);
  expect_alone(cache_, child, rows_);
}

TEST_F(KVCacheFork, LayersOutOfStepAreRefusedUntilTruncated) {
  append(cache_, parent_, rows_, 0, 100);
  KVTILT_EXPECT_OK(cache_.append(parent_, 0, rows_.view(100, 10), rows_.view(100, 10)));
  const Result<SequenceId> refused = cache_.fork(parent_);
  EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("layer 1 holds 100 tokens, an earlier one 110"));
  KVTILT_EXPECT_OK(cache_.truncate(parent_, cache_.length(parent_).value()));
  EXPECT_TRUE(cache_.fork(parent_).ok());
}

TEST_F(KVCacheFork, TakesNumbersOfTokensThatCanBeReserved) {
  for (const std::int64_t tokens : {std::int64_t{-1}, max_tokens + 1})
    EXPECT_EQ(cache_.fork(parent_, tokens).code(), ErrorCode::InvalidArgument) << tokens;
}

TEST_F(KVCacheFork, ForksAllOrNothing) {
  test::CountingAllocator memory;
  CacheOptions counted = options();
  counted.allocator = memory.get();
  KVCache cache = make(counted);
  parent_ = test::open_reserved(cache, 150);
  append(cache, parent_, rows_, 0, 150);
  int refusals = 0;
  for (Result<SequenceId> child = Status{}; !child; ++refusals) {
    memory.refuse_after = refusals;
    child = cache.fork(parent_, 300);
    memory.refuse_after = -1;
    ASSERT_TRUE(child || child.code() == ErrorCode::OutOfMemory);
    EXPECT_EQ(cache.memory().reserved_bytes, memory.bytes);
  }
  EXPECT_GT(refusals, 5);  // allocations for tables and blocks of two layers
}

TEST_F(KVCacheFork, RemovalSkipsLayersWithoutACache) {
  CacheShape shape = CacheShape::uniform(3, 2, 32);
  shape.layers[1] = {};
  KVCache cache = test::make_cache(shape, Plan::uniform(shape, presets::k4v2), options());
  const SequenceId id = test::open_reserved(cache, 150);
  for (const int layer : {0, 2})
    KVTILT_EXPECT_OK(cache.append(id, layer, rows_.view(), rows_.view()));
  KVTILT_EXPECT_OK(cache.remove(id, 36, 68));
  for (const int layer : {0, 2}) EXPECT_EQ(cache.view(id, layer)->page_count, 5);
}

TEST_F(KVCacheFork, RemovalDropsPagesAndNothingMoves) {
  append(cache_, parent_, rows_, 0, 150);
  KVTILT_EXPECT_OK(cache_.remove(parent_, 36, 68));
  EXPECT_EQ(cache_.length(parent_).value(), 150);
  const LayerView view = cache_.view(parent_, 1).value();
  ASSERT_EQ(view.page_count, 5);
  EXPECT_EQ(view.pages[1].first_position, 4);
  EXPECT_EQ(view.pages[2].first_position, 68);
  // Attention skips the removed pages; the other tokens keep their positions.
  const Rows<float> queries = test::random_queries(random_, view.shape, 3, 2);
  const std::vector<float> slopes(4, 0.05f);
  AttendOptions options = test::exact_options();
  options.alibi_slopes = slopes;
  EXPECT_TRUE(test::follows_oracle(view, queries, options, test::attended(view, queries, options),
                                   4.0));  // the bound is 4 times wider because codes may cancel
  append(cache_, parent_, rows_, 0, 50);
  EXPECT_EQ(cache_.length(parent_).value(), 200);
}

TEST_F(KVCacheFork, RemovalOfAnythingButWholePagesIsRefused) {
  append(cache_, parent_, rows_, 0, 150);
  KVTILT_EXPECT_OK(cache_.append(parent_, 0, rows_.view(0, 40), rows_.view(0, 40)));
  const test::Snapshot first(cache_.view(parent_, 0).value());
  const test::Snapshot second(cache_.view(parent_, 1).value());
  struct Range {
    std::int64_t from, to;
  };
  // Inside pages, in the sinks, in the tail, sealed in one layer only, empty, backwards, beyond.
  for (const Range range : {Range{5, 36},
                            {4, 35},
                            {4, 37},
                            {0, 4},
                            {0, 36},
                            {100, 150},
                            {132, 164},
                            {36, 36},
                            {68, 36},
                            {-32, 4},
                            {400, 432}}) {
    const Status refused = cache_.remove(parent_, range.from, range.to);
    EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument) << range.from << " to " << range.to;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("no sealed pages"));
    EXPECT_TRUE(test::unchanged(first, cache_.view(parent_, 0).value()));
    EXPECT_TRUE(test::unchanged(second, cache_.view(parent_, 1).value()));
  }
  // A range that spans a removed page is refused too.
  KVTILT_EXPECT_OK(cache_.remove(parent_, 36, 68));
  EXPECT_EQ(cache_.remove(parent_, 4, 132).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(cache_.remove(parent_, 4, 68).code(), ErrorCode::InvalidArgument);
  KVTILT_EXPECT_OK(cache_.remove(parent_, 68, 132));
  KVTILT_EXPECT_OK(cache_.remove(parent_, 4, 36));
}

}  // namespace
}  // namespace kvtilt
