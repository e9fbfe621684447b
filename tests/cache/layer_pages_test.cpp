// SPDX-License-Identifier: MIT
// Pages that an engine manages itself, against the same tokens in a KVCache.
#include <kvtilt/cache/layer_pages.hpp>

#include "support/aligned_memory.hpp"
#include "support/all_formats.hpp"
#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::AlignedMemory;
using test::attended;
using test::Random;
using test::random_queries;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

/// An engine that keeps one sequence as a KVCache would: sinks, sealed pages, 16-bit tail.
class Engine {
 public:
  Engine(LayerPages pages, const CacheOptions& options, int tokens)
      : pages_(std::move(pages)),
        options_(options),
        blocks_(pages_.bytes(PageKind::Tail) * slots(tokens)),
        sealed_(pages_.bytes(PageKind::Sealed) * slots(tokens)) {}

  Status append(const TensorView& keys, const TensorView& values) {
    const int start = options_.sink_tokens;
    const bool sink = length_ < start;
    const int slot = sink ? length_ : (length_ - start) % options_.page_tokens;
    if (slot == 0)
      table_.push_back({next(blocks_, PageKind::Tail, table_.size()), length_, 0,
                        sink ? PageKind::Sinks : PageKind::Tail});
    KVTILT_RETURN_IF_ERROR(pages_.write(keys, values, slot, table_.back().data));
    ++table_.back().tokens;
    ++length_;
    if (length_ - start - count_ * options_.page_tokens <
        options_.recent_tokens + options_.page_tokens)
      return {};
    PageEntry& full = table_[static_cast<std::size_t>(count_ + (start > 0 ? 1 : 0))];
    std::byte* page = next(sealed_, PageKind::Sealed, static_cast<std::size_t>(count_++));
    KVTILT_RETURN_IF_ERROR(pages_.seal(full.data, page));
    std::memset(full.data, 0xff, pages_.bytes(PageKind::Tail));  // a page must not need it
    full.data = page;
    full.kind = PageKind::Sealed;
    return {};
  }
  [[nodiscard]] LayerView view() const { return *pages_.view(table_, length_); }

 private:
  [[nodiscard]] std::size_t slots(int tokens) const {
    return static_cast<std::size_t>(tokens / options_.page_tokens + 2);
  }
  [[nodiscard]] std::byte* next(AlignedMemory& memory, PageKind kind, std::size_t index) const {
    return memory.data() + index * pages_.bytes(kind);
  }

  LayerPages pages_;
  CacheOptions options_;
  AlignedMemory blocks_;
  AlignedMemory sealed_;
  std::vector<PageEntry> table_;
  int length_ = 0;
  int count_ = 0;  ///< number of sealed pages
};

bool same_bits(const test::Output& a, const test::Output& b) {
  return a.out.data.size() == b.out.data.size() &&
         std::memcmp(a.out.data.data(), b.out.data.data(), a.out.data.size() * sizeof(float)) ==
             0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

/// All sealed pages have equal bytes, and there are at least three.
void expect_same_pages(const LayerView& ours, const LayerView& cache) {
  ASSERT_EQ(ours.page_count, cache.page_count);
  int sealed = 0;
  for (std::int32_t i = 0; i < ours.page_count; ++i) {
    ASSERT_TRUE(test::same_entry(ours.pages[i], cache.pages[i])) << i;
    if (ours.pages[i].kind != PageKind::Sealed) continue;
    ++sealed;
    const std::size_t bytes = test::block_bytes(cache, PageKind::Sealed);
    EXPECT_EQ(std::memcmp(ours.pages[i].data, cache.pages[i].data, bytes), 0) << "page " << i;
  }
  EXPECT_GT(sealed, 2);
}

void expect_like_a_cache(const LayerShape& shape, const std::vector<Recipe>& recipes,
                         const CacheOptions& options, Random& random) {
  const int tokens = 5 * options.page_tokens + 9;
  const CacheShape one{{shape}};
  KVCache cache = test::make_cache(one, Plan{{recipes}}, options);
  const SequenceId id = test::open_reserved(cache, tokens);
  Engine engine(LayerPages::create(shape, recipes, options.page_tokens, options.isa).value(),
                options, tokens);
  const Rows<float> keys = random_rows(random, tokens, shape.kv_heads, shape.key_dim);
  const Rows<float> values = random_rows(random, tokens, shape.kv_heads, shape.value_dim);
  KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  for (int t = 0; t < tokens; ++t)
    KVTILT_EXPECT_OK(engine.append(keys.view(t, 1), values.view(t, 1)));

  const LayerView theirs = cache.view(id, 0).value();
  expect_same_pages(engine.view(), theirs);
  const Rows<float> queries = random_queries(random, shape, 7, 2);
  AttendOptions narrow;
  narrow.window = 40;
  for (const AttendOptions& how : {AttendOptions{}, narrow})
    EXPECT_TRUE(same_bits(attended(engine.view(), queries, how), attended(theirs, queries, how)));
}

TEST(LayerPagesProperty, BytesAndAttentionAreThoseOfACache) {
  Random random(5);
  const LayerShape shape{2, 64, 32, 0};
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k4v2", "k16v16", "k1v8", "k3tv2:g64,32"})
      for (const int page : {32, 128}) {
        CacheOptions options;
        options.page_tokens = page;
        options.recent_tokens = random.below(60);
        options.sink_tokens = random.below(3) * 4;
        options.isa = isa;
        const Recipe recipe = parse_recipe(name).value();
        expect_like_a_cache(shape, {recipe}, options, random);
        expect_like_a_cache(shape, {recipe, presets::k8v8}, options, random);
        expect_like_a_cache({3, 192, 128, 0}, {recipe}, options, random);
      }
}

TEST(LayerPages, SinksOutliveTheWindowWhereTheLayerSaysSo) {
  // A KVCache frees pages behind the window; an engine may keep them, but no query sees them.
  Random random(6);
  CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 10;
  for (const bool keep_sinks : {false, true}) {
    const LayerShape shape{1, 64, 64, 50, keep_sinks};
    KVCache cache = test::make_cache(shape, presets::k4v2, options);
    const SequenceId id = test::open_reserved(cache, 300);
    Engine engine(LayerPages::create(shape, {presets::k4v2}, 32).value(), options, 300);
    const Rows<float> rows = random_rows(random, 300, 1, 64);
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
    for (int t = 0; t < 300; ++t) KVTILT_EXPECT_OK(engine.append(rows.view(t, 1), rows.view(t, 1)));
    const Rows<float> queries = random_queries(random, shape, 3, 4);
    EXPECT_LT(cache.view(id, 0)->page_count, engine.view().page_count);
    EXPECT_TRUE(same_bits(attended(engine.view(), queries), attended(*cache.view(id, 0), queries)));
  }
}

TEST(LayerPages, AChunkAttendsToItselfAndToTheTable) {
  Random random(7);
  const LayerShape shape{2, 64, 64, 0};
  CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 0;
  KVCache cache = test::make_cache(shape, presets::k4v2, options);
  const SequenceId id = test::open_reserved(cache, 200);
  Engine engine(LayerPages::create(shape, {presets::k4v2}, 32).value(), options, 200);
  const Rows<float> rows = random_rows(random, 200, 2, 64);
  const Rows<float> queries = random_queries(random, shape, 50, 2);
  const auto prefill = [&](const LayerView& past, std::int64_t first) {
    test::Output output(50, 4, 64);
    std::vector<std::byte> workspace(attend_prefill_workspace_bytes(past, 50));
    KVTILT_EXPECT_OK(attend_prefill(past, queries.view(), rows.view(first, 50),
                                    rows.view(first, 50), output.view(), {}, workspace));
    return output;
  };
  for (int first = 0; first < 200; first += 50) {  // the first chunk has no past
    EXPECT_TRUE(same_bits(prefill(engine.view(), first), prefill(*cache.view(id, 0), first)));
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(first, 50), rows.view(first, 50)));
    for (int t = first; t < first + 50; ++t)
      KVTILT_EXPECT_OK(engine.append(rows.view(t, 1), rows.view(t, 1)));
  }
}

TEST(LayerPages, SeveralTokensAreWrittenLikeOneAfterTheOther) {
  Random random(8);
  const LayerPages pages = LayerPages::create({2, 24, 40}, {presets::k4v2}, 32).value();
  const Rows<float> keys = random_rows(random, 32, 2, 24);
  const Rows<float> values = random_rows(random, 32, 2, 40);
  AlignedMemory together(pages.bytes(PageKind::Tail));
  AlignedMemory alone(pages.bytes(PageKind::Tail));
  KVTILT_EXPECT_OK(pages.write(keys.view(0, 5), values.view(0, 5), 0, together.data()));
  KVTILT_EXPECT_OK(pages.write(keys.view(5, 27), values.view(5, 27), 5, together.data()));
  for (int t = 31; t >= 0; --t)  // an engine may write in any order
    KVTILT_EXPECT_OK(pages.write(keys.view(t, 1), values.view(t, 1), t, alone.data()));
  EXPECT_EQ(together.copy(), alone.copy());
  EXPECT_EQ(pages.bytes(PageKind::Tail), pages.bytes(PageKind::Sinks));
  EXPECT_EQ(pages.page_tokens(), 32);
}

TEST(LayerPagesHostile, WhatACacheRefusesIsRefused) {
  const LayerShape shape{2, 64, 32, 0};
  const auto message = [](const LayerShape& layer, const std::vector<Recipe>& recipes, int page) {
    const Result<LayerPages> made = LayerPages::create(layer, recipes, page);
    EXPECT_EQ(made.code(), made.ok() ? ErrorCode::Ok : ErrorCode::InvalidArgument);
    return std::string(made.message());
  };
  EXPECT_EQ(message(shape, {presets::k4v2}, 64), "");
  EXPECT_THAT(message(shape, {presets::k4v2}, 48), HasSubstr("page_tokens is 48"));
  EXPECT_EQ(message(shape, {}, 64), "0 recipes for 2 kv heads; give one, or one per head");
  EXPECT_THAT(message(shape, {3, presets::k4v2}, 64), HasSubstr("3 recipes for 2 kv heads"));
  EXPECT_EQ(message({1, 12, 16}, {presets::k4v2}, 64),
            "head dimensions are key 12, value 16; both must be multiples of 8 from 8 to 576");
  EXPECT_THAT(message({}, {presets::k4v2}, 64), HasSubstr("nothing to keep"));
  EXPECT_EQ(LayerPages::create<test::UnequalFormats>(shape, {presets::k4v2}).code(),
            ErrorCode::Unsupported);
}

TEST(LayerPagesHostile, RowsAndSlotsThatDoNotFitWriteNothing) {
  const LayerPages pages = LayerPages::create({2, 64, 32}, {presets::k4v2}, 32).value();
  AlignedMemory memory(pages.bytes(PageKind::Tail));
  Random random(9);
  Rows<float> keys = random_rows(random, 3, 2, 64);
  Rows<float> values = random_rows(random, 3, 2, 32);
  const std::vector<std::byte> before = memory.copy();
  const auto message = [&](const TensorView& k, const TensorView& v, int slot, std::byte* block,
                           ErrorCode code = ErrorCode::InvalidArgument) {
    const Status status = pages.write(k, v, slot, block);
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(memory.copy(), before);
    return std::string(status.message());
  };
  std::byte* block = memory.data();
  EXPECT_EQ(message(keys.view(), values.view(), 30, block),
            "3 tokens from slot 30 on do not fit a block of 32");
  for (const int slot : {-1, 33, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()})
    EXPECT_THAT(message(keys.view(), values.view(), slot, block), HasSubstr("do not fit"));
  EXPECT_THAT(message(keys.view(), values.view(), 0, nullptr), HasSubstr("the block is at"));
  EXPECT_THAT(message(keys.view(), values.view(), 0, block + 32), HasSubstr("a multiple of 64"));
  EXPECT_EQ(message(values.view(), keys.view(), 0, block),
            "keys are [3, 2, 32] and values [3, 2, 64]; expected [n, 2, 64] and [n, 2, 32]");
  EXPECT_THAT(message(keys.view(0, 2), values.view(), 0, block), HasSubstr("keys are [2, 2, 64]"));
  TensorView none = keys.view();
  none.data = nullptr;
  EXPECT_EQ(message(none, values.view(), 0, block), "keys or values are null");
  values.at(2, 1, 7) = 70000.0f;
  EXPECT_EQ(message(keys.view(), values.view(), 0, block, ErrorCode::InvalidValue),
            "value of token 2, kv head 1, channel 7 is 70000; 2-bit formats hold finite magnitudes "
            "up to 65504");
  KVTILT_EXPECT_OK(pages.write(keys.view(0, 0), values.view(0, 0), 32, block));
  EXPECT_EQ(memory.copy(), before);
}

TEST(LayerPagesHostile, PagesAreNotSealedIntoTheirOwnBlock) {
  const LayerPages pages = LayerPages::create({1, 64, 64}, {presets::k4v2}, 32).value();
  const std::size_t block_bytes = pages.bytes(PageKind::Tail);
  const std::size_t page_bytes = pages.bytes(PageKind::Sealed);
  AlignedMemory memory(2 * block_bytes);
  std::byte* start = memory.data();
  const std::vector<std::byte> before = memory.copy();
  const auto refused = [&](const std::byte* block, std::byte* page) {
    const Status status = pages.seal(block, page);
    EXPECT_EQ(memory.copy(), before);
    return status.code() == ErrorCode::InvalidArgument;
  };
  EXPECT_TRUE(refused(nullptr, start));
  EXPECT_TRUE(refused(start, nullptr));
  EXPECT_TRUE(refused(start + 1, start + block_bytes));
  EXPECT_TRUE(refused(start, start + block_bytes + 16));
  EXPECT_TRUE(refused(start, start));
  EXPECT_TRUE(refused(start, start + block_bytes - page_alignment));
  EXPECT_TRUE(refused(start + page_bytes - page_alignment, start));
  const Rows<float> rows(32, 1, 64);
  KVTILT_EXPECT_OK(pages.write(rows.view(), rows.view(), 0, start));
  KVTILT_EXPECT_OK(pages.seal(start, start + block_bytes));
  KVTILT_EXPECT_OK(pages.write(rows.view(), rows.view(), 0, start + block_bytes));
  KVTILT_EXPECT_OK(pages.seal(start + block_bytes, start + block_bytes - page_bytes));
}

TEST(LayerPagesHostile, TablesThatAreNoneAreRefused) {
  const LayerPages pages = LayerPages::create({1, 64, 64}, {presets::k4v2}, 32).value();
  AlignedMemory memory(pages.bytes(PageKind::Tail));
  const PageEntry first{memory.data(), 0, 32, PageKind::Sealed};
  const PageEntry second{memory.data(), 32, 10, PageKind::Tail};
  const auto message = [&](const std::vector<PageEntry>& table, std::int64_t length) {
    const Result<LayerView> view = pages.view(table, length);
    EXPECT_EQ(view.code(), view.ok() ? ErrorCode::Ok : ErrorCode::InvalidArgument);
    return std::string(view.message());
  };
  const auto edited = [&](auto edit) {
    PageEntry entry = second;
    edit(entry);
    return message({first, entry}, 42);
  };
  EXPECT_EQ(message({}, 0), "");
  EXPECT_EQ(message({first, second}, 42), "");
  EXPECT_EQ(message({first, second}, 50), "");  // the newest tokens may lie elsewhere
  EXPECT_EQ(message({second}, 42), "");         // so may the oldest
  EXPECT_THAT(message({first, second}, 41), HasSubstr("page 1 holds 10 positions from 32 on"));
  EXPECT_THAT(message({second, first}, 42), HasSubstr("page 1 holds 32 positions from 0 on"));
  EXPECT_THAT(message({first, first}, 99), HasSubstr("page 1"));
  EXPECT_THAT(message({}, -1), HasSubstr("-1 tokens are no sequence"));
  EXPECT_THAT(message({}, std::numeric_limits<std::int64_t>::max()), HasSubstr("no sequence"));
  EXPECT_THAT(edited([](PageEntry& e) { e.tokens = 0; }), HasSubstr("has 0 tokens, must have 1"));
  EXPECT_THAT(edited([](PageEntry& e) { e.tokens = 33; }), HasSubstr("1 to 32"));
  EXPECT_THAT(edited([](PageEntry& e) { e.data = nullptr; }), HasSubstr("not at a multiple of 64"));
  EXPECT_THAT(edited([](PageEntry& e) { e.data += 8; }), HasSubstr("not at a multiple of 64"));
  EXPECT_THAT(edited([](PageEntry& e) { e.kind = static_cast<PageKind>(3); }), HasSubstr("kind"));
  for (const std::int64_t position : {std::numeric_limits<std::int64_t>::min(), std::int64_t{31},
                                      std::numeric_limits<std::int64_t>::max()})
    EXPECT_THAT(edited([&](PageEntry& e) { e.first_position = position; }), HasSubstr("in order"));
}

}  // namespace
}  // namespace kvtilt
