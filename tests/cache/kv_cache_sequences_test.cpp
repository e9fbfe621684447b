// SPDX-License-Identifier: MIT
/// Many sequences in one cache: handles, opening and closing.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/small_cache.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::expect_alone;
using test::one_head;
using test::Random;
using test::random_rows;
using test::Rows;
using test::small_pages;
using testing::HasSubstr;

TEST(KVCacheSequences, GrowSideBySide) {
  Random random(1);
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  std::vector<SequenceId> ids;
  std::vector<Rows<float>> tokens;
  std::vector<std::int64_t> lengths(5, 0);
  for (int i = 0; i < 5; ++i) {
    ids.push_back(test::open_reserved(cache, 300));
    tokens.push_back(random_rows(random, 300, 1, 32));
  }
  for (int step = 0; step < 200; ++step) {
    const std::size_t i = static_cast<std::size_t>(random.between(0, 4));
    const std::int64_t count = std::min<std::int64_t>(random.between(0, 20), 300 - lengths[i]);
    const TensorView rows = tokens[i].view(lengths[i], count);
    KVTILT_EXPECT_OK(cache.append(ids[i], 0, rows, rows));
    lengths[i] += count;
  }
  for (std::size_t i = 0; i < 5; ++i) {
    Rows<float> own(lengths[i], 1, 32);
    std::copy_n(tokens[i].data.begin(), own.data.size(), own.data.begin());
    expect_alone(cache.view(ids[i], 0).value(), own);
  }
}

TEST(KVCacheSequences, ClosedBlocksServeTheNextSequence) {
  Random random(2);
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  std::size_t reserved = 0;
  for (int round = 0; round < 5; ++round) {
    const SequenceId id = test::open_reserved(cache, 200);
    const Rows<float> tokens = random_rows(random, 200 - 30 * round, 1, 32);
    KVTILT_EXPECT_OK(cache.append(id, 0, tokens.view(), tokens.view()));
    KVTILT_EXPECT_OK(cache.truncate(id, 150 - 30 * round));
    KVTILT_EXPECT_OK(cache.append(id, 0, tokens.view(0, 20), tokens.view(0, 20)));
    if (round == 0) reserved = cache.memory().reserved_bytes;
    EXPECT_EQ(cache.memory().reserved_bytes, reserved);
    EXPECT_TRUE(test::attends_within_bound(cache.view(id, 0).value(),
                                           test::random_queries(random, one_head, 2, 2)));
    KVTILT_EXPECT_OK(cache.close(id));
    EXPECT_EQ(cache.memory().bytes_in_use(), 0u);
  }
}

TEST(KVCacheSequences, AStaleIdIsRefusedEverywhere) {
  Random random(3);
  KVCache cache = test::make_cache(one_head, presets::k4v2, small_pages());
  const SequenceId stale = test::open_reserved(cache, 10);
  KVTILT_EXPECT_OK(cache.close(stale));
  const SequenceId fresh = test::open_reserved(cache, 10);
  ASSERT_EQ(fresh.slot, stale.slot);
  ASSERT_NE(fresh.generation, stale.generation);
  const Rows<float> tokens = random_rows(random, 5, 1, 32);
  KVTILT_EXPECT_OK(cache.append(fresh, 0, tokens.view(), tokens.view()));
  const test::Snapshot before(cache.view(fresh, 0).value());
  for (const SequenceId id : {stale, SequenceId{}, SequenceId{0, 77}, SequenceId{5, 1},
                              SequenceId{1u << 31, 1}, SequenceId{fresh.slot, 0}}) {
    std::vector<Status> refusals;
    refusals.push_back(cache.reserve(id, 10));
    refusals.push_back(cache.append(id, 0, tokens.view(), tokens.view()));
    refusals.push_back(cache.truncate(id, 0));
    refusals.push_back(cache.close(id));
    refusals.push_back(std::move(cache.view(id, 0)).take_status());
    refusals.push_back(std::move(cache.length(id)).take_status());
    refusals.push_back(std::move(cache.length(id, 0)).take_status());
    refusals.push_back(std::move(cache.memory(id)).take_status());
    for (const Status& status : refusals) {
      EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr("sequence " + std::to_string(id.slot) + " (generation " +
                            std::to_string(id.generation) + ") is not open"));
    }
  }
  EXPECT_TRUE(test::unchanged(before, cache.view(fresh, 0).value()));
}

TEST(KVCacheSequences, AreLimitedInNumber) {
  CacheOptions options = small_pages();
  options.max_sequences = 3;
  KVCache cache = test::make_cache(one_head, presets::k4v2, options);
  std::vector<SequenceId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(cache.open().value());
  const Result<SequenceId> refused = cache.open();
  EXPECT_EQ(refused.code(), ErrorCode::OutOfCapacity);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("all 3 sequences"));
  KVTILT_EXPECT_OK(cache.close(ids[1]));
  EXPECT_TRUE(cache.open().ok());
}

TEST(KVCacheSequences, SurviveTheMoveOfTheirCache) {
  Random random(4);
  KVCache first = test::make_cache(one_head, presets::k4v2, small_pages());
  const SequenceId id = test::open_reserved(first, 100);
  const Rows<float> tokens = random_rows(random, 100, 1, 32);
  KVTILT_EXPECT_OK(first.append(id, 0, tokens.view(0, 60), tokens.view(0, 60)));
  KVCache second = std::move(first);
  KVTILT_EXPECT_OK(second.append(id, 0, tokens.view(60, 40), tokens.view(60, 40)));
  expect_alone(second.view(id, 0).value(), tokens);
}

}  // namespace
}  // namespace kvtilt
