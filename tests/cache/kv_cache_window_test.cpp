// SPDX-License-Identifier: MIT
/// A layer with a window: which pages it frees, when, and what it then refuses.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/attend_check.hpp"
#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

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

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

constexpr int window = 50;
constexpr int recent = 16;

/// Sinks at 0 to 3, pages of 32 from 4 on.
struct Windowed {
  LayerShape shape{1, 32, 32, window};
  KVCache cache;
  SequenceId id;
  Rows<float> rows;

  explicit Windowed(std::int64_t tokens, bool keep_sinks = false)
      : shape{1, 32, 32, window, keep_sinks},
        cache(make()),
        id(test::open_reserved(cache, 600)),
        rows(tokens, 1, 32) {
    Random random(1);
    rows = random_rows(random, tokens, 1, 32);
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
  }
  [[nodiscard]] LayerView view() const { return cache.view(id, 0).value(); }

 private:
  [[nodiscard]] KVCache make() const {
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = recent;
    return test::make_cache(shape, presets::k4v2, options);
  }
};

TEST(KVCacheWindow, PagesAreFreedOnceNoRecentTokenSeesThem) {
  Windowed windowed(1);
  Random random(2);
  const Rows<float> one = random_rows(random, 1, 1, 32);
  for (std::int64_t length = 2; length <= 600; ++length) {
    KVTILT_EXPECT_OK(windowed.cache.append(windowed.id, 0, one.view(), one.view()));
    const LayerView view = windowed.view();
    std::int64_t sealed = 0;
    for (std::int32_t i = 0; i < view.page_count; ++i) {
      if (view.pages[i].kind != PageKind::Sealed) continue;
      ++sealed;
      // Pages are freed only when another is sealed: up to a page later than the window allows.
      ASSERT_GT(view.pages[i].first_position + 32, length - 32 - recent - window) << length;
    }
    ASSERT_EQ(view.pages[0].kind, PageKind::Sinks);
    if (length > recent) {
      ASSERT_LE(view.first_kept, std::max<std::int64_t>(0, length - recent - window + 1)) << length;
    }
    ASSERT_LE(sealed, 3);
  }
  EXPECT_GT(windowed.view().first_kept, 400);
}

TEST(KVCacheWindow, PagesInsideNeedNoMemoryBeyondTheFirstWindow) {
  Windowed windowed(600);
  const std::size_t reserved = windowed.cache.memory().reserved_bytes;
  KVTILT_EXPECT_OK(windowed.cache.reserve(windowed.id, 100000));
  EXPECT_EQ(windowed.cache.memory().reserved_bytes, reserved);
}

TEST(KVCacheWindow, TruncationIsRefusedExactlyWhereTheNextTokenSeesFreedOnes) {
  for (std::int64_t length = 320;; --length) {
    Windowed windowed(320);
    const std::int64_t kept = windowed.view().first_kept;
    ASSERT_GT(kept, 200);
    const test::Snapshot before(windowed.view());
    const Status status = windowed.cache.truncate(windowed.id, length);
    if (length - window + 1 >= kept) {  // the token at `length` sees itself and window - 1 before
      EXPECT_TRUE(status.ok()) << status.message();
      continue;
    }
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("freed positions up to " + std::to_string(kept - 1)));
    EXPECT_TRUE(test::unchanged(before, windowed.view()));
    // The third token sees sinks alone: from there on nothing is missing.
    KVTILT_EXPECT_OK(windowed.cache.truncate(windowed.id, 2));
    KVTILT_EXPECT_OK(windowed.cache.append(windowed.id, 0, windowed.rows.view(2, 90),
                                           windowed.rows.view(2, 90)));
    test::attended(windowed.view(), Rows<float>(recent, 1, 32));
    break;
  }
}

TEST(KVCacheWindow, AForkAndALoadedSequenceRefuseTheSameTruncations) {
  Windowed windowed(320);
  KVCache& cache = windowed.cache;
  const std::int64_t kept = windowed.view().first_kept;
  ASSERT_GT(kept, 200);
  const std::vector<std::byte> image = test::saved(cache, windowed.id);
  for (const SequenceId id : {cache.fork(windowed.id).value(), cache.load(image).value()}) {
    EXPECT_EQ(cache.view(id, 0)->first_kept, kept);
    EXPECT_EQ(cache.truncate(id, kept + window - 2).code(), ErrorCode::InvalidArgument);
    KVTILT_EXPECT_OK(cache.truncate(id, kept + window - 1));
  }
}

/// 320 tokens in two layers; the second has a window.
struct HalfWindowed {
  KVCache cache = make();
  SequenceId id = test::open_reserved(cache, 320);

  HalfWindowed() {
    Random random(3);
    const Rows<float> rows = random_rows(random, 320, 1, 32);
    for (const int layer : {0, 1})
      KVTILT_EXPECT_OK(cache.append(id, layer, rows.view(), rows.view()));
  }

 private:
  static KVCache make() {
    const CacheShape shape{{{1, 32, 32, 0}, {1, 32, 32, window}}};
    CacheOptions options;
    options.page_tokens = 32;
    options.recent_tokens = recent;
    return test::make_cache(shape, Plan::uniform(shape, presets::k4v2), options);
  }
};

TEST(KVCacheWindow, OneLayersWindowKeepsTheOthersWhole) {
  HalfWindowed half;
  KVCache& cache = half.cache;
  const SequenceId id = half.id;
  EXPECT_EQ(cache.view(id, 0)->first_kept, 0);
  EXPECT_GT(cache.view(id, 1)->first_kept, 200);
  const test::Snapshot whole(cache.view(id, 0).value());
  EXPECT_EQ(cache.truncate(id, 100).code(), ErrorCode::InvalidArgument);
  EXPECT_TRUE(test::unchanged(whole, cache.view(id, 0).value()));
}

TEST(KVCacheWindow, RemovalLooksForWhatTheWindowHasLeft) {
  HalfWindowed half;
  KVCache& cache = half.cache;
  const SequenceId id = half.id;
  const std::int64_t kept = cache.view(id, 1)->first_kept;
  ASSERT_EQ(kept, 4 + 32 * 7);
  ASSERT_EQ(cache.view(id, 1)->pages[2].kind, PageKind::Sealed);
  // Freed in layer 1, but in the sinks, inside a page of layer 0, empty, or backwards.
  const test::Snapshot windowed(cache.view(id, 1).value());
  for (const auto& [from, to] : {std::pair{0, 36}, {5, 36}, {4, 35}, {36, 36}, {36, 4}, {-28, 4}})
    EXPECT_EQ(cache.remove(id, from, to).code(), ErrorCode::InvalidArgument) << from;
  EXPECT_THAT(std::string(cache.remove(id, 5, 69).message()),
              HasSubstr("layer 0 has no sealed pages that hold exactly positions [5, 69); the "
                        "nearest that it has hold [4, 68)"));
  KVTILT_EXPECT_OK(cache.remove(id, 36, 100));
  EXPECT_TRUE(test::unchanged(windowed, cache.view(id, 1).value()));
  EXPECT_EQ(cache.view(id, 0)->page_count, cache.view(id, 1)->page_count + 7 - 2);

  // Half of it is freed already: the rest can be removed if it ends with a page.
  EXPECT_EQ(cache.remove(id, kept - 32, kept + 31).code(), ErrorCode::InvalidArgument);
  EXPECT_TRUE(test::unchanged(windowed, cache.view(id, 1).value()));
  KVTILT_EXPECT_OK(cache.remove(id, kept - 32, kept + 32));
  EXPECT_EQ(cache.view(id, 1)->page_count, static_cast<std::int32_t>(windowed.pages.size()) - 1);
  for (const int layer : {0, 1}) {
    const LayerView view = cache.view(id, layer).value();
    EXPECT_EQ(view.length, 320);
    for (std::int32_t i = 1; i < view.page_count; ++i)
      EXPECT_TRUE(view.pages[i].first_position + view.pages[i].tokens <= kept - 32 ||
                  view.pages[i].first_position >= kept + 32);
  }
  EXPECT_EQ(cache.remove(id, kept - 32, kept + 32).code(), ErrorCode::InvalidArgument) << "twice";

  Windowed alone(320);
  const test::Snapshot before(alone.view());
  KVTILT_EXPECT_OK(alone.cache.remove(alone.id, 4, kept));
  for (const auto& [from, to] : {std::pair{0, 36}, {-28, 36}, {36, 36}, {36, 4}})
    EXPECT_EQ(alone.cache.remove(alone.id, from, to).code(), ErrorCode::InvalidArgument) << from;
  EXPECT_TRUE(test::unchanged(before, alone.view()));
}

TEST(KVCacheWindow, AttendingToFreedTokensIsRefused) {
  Windowed windowed(320);
  const LayerView view = windowed.view();
  const std::int64_t reach = view.length - view.first_kept - window + 1;  // queries it can serve
  ASSERT_GE(reach, recent);
  Random random(4);
  const Rows<float> queries = test::random_queries(random, windowed.shape, reach + 1, 1);
  test::Output output(reach + 1, 1, 32);
  std::vector<std::byte> workspace(attend_workspace_bytes(view));
  const Status refused = attend(view, queries.view(), output.view(), {}, workspace);
  EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("has freed those before " + std::to_string(view.first_kept)));
  EXPECT_EQ(output.out.data[0], 77.0f);
  test::Output fewer(reach, 1, 32);
  KVTILT_EXPECT_OK(attend(view, queries.view(1, reach), fewer.view(), {}, workspace));
}

TEST(KVCacheWindow, SinksThatATruncationLeavesAreSeenAgain) {
  Random random(6);
  const Rows<float> query = test::random_queries(random, {1, 32, 32}, 1, 1);
  for (const std::int64_t kept : {0, 1, 4}) {
    Windowed windowed(320);
    ASSERT_GT(windowed.view().first_kept, 4);
    KVTILT_EXPECT_OK(windowed.cache.truncate(windowed.id, kept));
    EXPECT_EQ(windowed.view().first_kept, 0);
    for (int token = 0; token < window + 2; ++token) {
      KVTILT_EXPECT_OK(windowed.cache.append(windowed.id, 0, windowed.rows.view(token, 1),
                                             windowed.rows.view(token, 1)));
      EXPECT_TRUE(test::follows_oracle(windowed.view(), query, {},
                                       test::attended(windowed.view(), query), 4.0));
    }
  }
}

TEST(KVCacheWindow, SinksObeyItUnlessKept) {
  Random random(5);
  for (const bool keep : {false, true}) {
    const Windowed windowed(320, keep);
    const Rows<float> queries = test::random_queries(random, windowed.shape, 3, 2);
    const test::Output output = test::attended(windowed.view(), queries);
    EXPECT_TRUE(test::follows_oracle(windowed.view(), queries, {}, output, 4.0));  // codes cancel
    LayerView other = windowed.view();
    other.shape.keep_sinks = !keep;
    EXPECT_FALSE(test::follows_oracle(other, queries, {}, output, 4.0));
  }
}

}  // namespace
}  // namespace kvtilt
