// SPDX-License-Identifier: MIT
#include <kvtilt/attention/attend_memory.hpp>

#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::pick;
using test::Random;
using test::Rows;
using testing::HasSubstr;

AttendRequest request_of(const LayerView& view, std::int64_t queries, int query_heads) {
  AttendRequest request{view, {}, {}, {}};
  request.queries.tokens = queries;
  request.queries.heads = query_heads;
  return request;
}

/// A cache of one layer whose sequences never hold more than `tokens` tokens.
struct RandomCache {
  Random& random;
  CacheOptions options;
  LayerShape shape;
  std::int64_t tokens;
  KVCache cache;
  std::vector<SequenceId> ids;
  Rows<float> rows;

  explicit RandomCache(Random& random_)
      : random(random_),
        options{.page_tokens = 32,
                .sink_tokens = pick(random, {0, 4, 130}),
                .recent_tokens = pick(random, {0, 20, 128})},
        shape{random.between(1, 3), 8, 8, random.chance(4) ? random.between(1, 3000) : 0},
        tokens(random.between(1, 4000)),
        cache(test::make_cache(shape, presets::k8v8, options)),
        rows(test::random_rows(random, 1000, shape.kv_heads, 8)) {}

  void append(SequenceId id, std::int64_t count) {
    for (std::int64_t done = 0; done < count; done += 1000) {
      const TensorView some = rows.view(0, std::min<std::int64_t>(1000, count - done));
      KVTILT_EXPECT_OK(cache.append(id, 0, some, some));
    }
  }

  /// Never inside a sealed page; a window may refuse it.
  void truncate(SequenceId id) {
    const LayerView view = cache.view(id, 0).value();
    if (view.page_count == 0) return;
    const PageEntry& page = view.pages[random.below(view.page_count)];
    const int kept = page.kind == PageKind::Sealed ? 0 : random.below(page.tokens);
    (void)cache.truncate(id, page.first_position + kept);
  }

  void remove(SequenceId id) {
    const LayerView view = cache.view(id, 0).value();
    if (view.page_count == 0) return;
    const std::int64_t from = view.pages[random.below(view.page_count)].first_position;
    (void)cache.remove(id, from, from + 32);
  }

  /// Changes one random sequence.
  void change() {
    if (ids.empty() || (ids.size() < 4 && random.chance(3)))
      ids.push_back(ids.empty() || random.chance(2)
                        ? test::open_reserved(cache, tokens)
                        : cache.fork(pick(random, {ids.front(), ids.back()}), tokens).value());
    const SequenceId id = ids[static_cast<std::size_t>(random.below(static_cast<int>(ids.size())))];
    if (random.chance(3)) truncate(id);
    if (random.chance(4)) remove(id);
    KVTILT_EXPECT_OK(cache.reserve(id, tokens));
    const std::int64_t room = tokens - cache.length(id).value();
    append(id, random.chance(2) ? room : random.between(0, static_cast<int>(room)));
  }
};

TEST(AttendMemoryRandom, NoBatchNeedsMore) {
  Random random(1);
  int split = 0;
  for (int round = 0; round < 30; ++round) {
    RandomCache one(random);
    AttendStep step;
    step.tokens = one.tokens;
    step.query_heads = one.shape.kv_heads * pick(random, {1, 4, 71});
    step.queries = random.between(1, 8);
    step.sequences = 4;
    for (int change = 0; change < 10; ++change) {
      one.change();
      std::vector<AttendRequest> requests;
      for (const SequenceId id : one.ids)
        requests.push_back(request_of(one.cache.view(id, 0).value(),
                                      random.between(1, static_cast<int>(step.queries)),
                                      step.query_heads));
      for (const int workers : {1, 2, 3, 64}) {
        step.workers = workers;
        const std::size_t bytes = attend_workspace_bytes(requests, workers);
        ASSERT_LE(bytes, attend_workspace_bytes(one.shape, one.options, step).value())
            << "round " << round << ", change " << change << ", " << workers << " workers";
        split += workers == 2 && bytes > 2 * attend_workspace_bytes(requests, 1) ? 1 : 0;
      }
    }
  }
  EXPECT_GT(split, 20) << "nothing to be seen";
}

/// Workspace for views of these lengths, without memory.
std::size_t exact_bytes(const LayerShape& shape, const AttendStep& step,
                        const std::vector<std::int64_t>& tokens) {
  std::vector<AttendRequest> requests;
  for (const std::int64_t count : tokens) {
    LayerView view;
    view.shape = shape;
    view.max_page_tokens = 64;
    view.page_count = static_cast<std::int32_t>(1 + (count - 4 + 63) / 64);
    view.length = count;
    requests.push_back(request_of(view, step.queries, step.query_heads));
  }
  return attend_workspace_bytes(requests, step.workers);
}

TEST(AttendMemory, IsExactForEqualSequencesThatAreSplit) {
  const LayerShape shape{8, 128, 128};
  for (AttendStep step : {AttendStep{32768, 32, 1, 1, 2}, AttendStep{32768, 32, 1, 63, 64},
                          AttendStep{32768, 32, 5, 3, 16}, AttendStep{32768, 568, 1, 12, 64},
                          AttendStep{32768, 32, 1, 200, 1}, AttendStep{1988, 32, 1, 200, 64}}) {
    const std::vector<std::int64_t> equal(static_cast<std::size_t>(step.sequences), step.tokens);
    EXPECT_EQ(attend_workspace_bytes(shape, {}, step).value(), exact_bytes(shape, step, equal))
        << step.sequences << " sequences, " << step.workers << " workers";
  }
}

TEST(AttendMemory, ManySequencesNeedNoMorePartialResultsThanTheLongest) {
  const LayerShape shape{8, 128, 128};
  const AttendStep step{32768, 32, 1, 200, 16};  // 15 sequences of eight tiles can be split
  std::vector<std::int64_t> few(200, 4);
  std::fill_n(few.begin(), 15, 32768);
  const std::size_t bound = attend_workspace_bytes(shape, {}, step).value();
  const std::size_t tile = std::size_t{17} * 4 * (128 + 2) * sizeof(float);
  EXPECT_LE(exact_bytes(shape, step, few), bound);
  EXPECT_LT(bound - exact_bytes(shape, step, few), 8 * tile);
  few[15] = 32768;
  EXPECT_LT(exact_bytes(shape, step, few), bound) << "sixteen are enough: none is split";
}

TEST(AttendMemory, ALayerWithoutACacheNeedsNothing) {
  EXPECT_EQ(attend_workspace_bytes({0, 0, 0, 0}, {}, AttendStep{}).value(), 0u);
}

TEST(AttendMemoryHostile, WhatIsOutOfRangeIsNamed) {
  const LayerShape shape{2, 64, 64};
  const auto refuses = [&](const AttendStep& step, const char* words) {
    const Result<std::size_t> bytes = attend_workspace_bytes(shape, {}, step);
    EXPECT_EQ(bytes.code(), ErrorCode::InvalidArgument) << words;
    EXPECT_THAT(std::string(bytes.message()), HasSubstr(words));
  };
  refuses({100, 0, 1, 1, 1}, "query_heads is 0");
  refuses({100, 7, 1, 1, 1}, "query_heads is 7, must be a multiple of kv_heads, which is 2");
  refuses({100, -2, 1, 1, 1}, "query_heads is -2");
  refuses({100, 8, 0, 1, 1}, "queries is 0");
  refuses({100, 8, (1 << 20) + 1, 1, 1}, "queries is 1048577");
  refuses({100, 8, 1, 0, 1}, "sequences is 0");
  refuses({100, 8, 1, 1025, 1}, "sequences is 1025");
  refuses({100, 8, 1, 1, 0}, "0 workers");
  refuses({-1, 8, 1, 1, 1}, "-1 tokens");
  EXPECT_EQ(attend_workspace_bytes({2, 63, 64}, {}, {100, 8, 1, 1, 1}).code(),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(attend_workspace_bytes(shape, {.page_tokens = 33}, {100, 8, 1, 1, 1}).code(),
            ErrorCode::InvalidArgument);
  const int most = std::numeric_limits<int>::max();
  EXPECT_EQ(attend_workspace_bytes(shape, {.max_sequences = 1 << 20},
                                   {max_tokens, most - 1, 1 << 20, 1 << 20, most})
                .code(),
            ErrorCode::OutOfMemory);
  EXPECT_TRUE(attend_workspace_bytes(shape, {.max_sequences = 1 << 20},
                                     {max_tokens, most - 1, 1 << 20, 1 << 20, 1})
                  .ok());
}

}  // namespace
}  // namespace kvtilt
