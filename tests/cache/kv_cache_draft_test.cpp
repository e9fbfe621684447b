// SPDX-License-Identifier: MIT
// tokens_before_seal() and truncate() as speculative decoding uses them.
#include <kvtilt/kvtilt.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt {
namespace {

using test::attended;
using test::make_cache;
using test::open_reserved;
using test::Output;
using test::Random;
using test::random_queries;
using test::random_rows;
using test::Rows;

constexpr int tokens = 220;

std::size_t sealed_pages(const LayerView& view) {
  return static_cast<std::size_t>(
      std::count_if(view.pages, view.pages + view.page_count,
                    [](const PageEntry& page) { return page.kind == PageKind::Sealed; }));
}

TEST(KVCacheDraft, TokensBeforeSealCountsDownToTheNextPage) {
  const LayerShape shape{1, 16, 16, 0};
  for (const int sinks : {0, 5})
    for (const int recent : {0, 7, 64}) {
      CacheOptions options;
      options.page_tokens = 32;
      options.sink_tokens = sinks;
      options.recent_tokens = recent;
      KVCache cache = make_cache(shape, presets::k4v2, options);
      const SequenceId id = open_reserved(cache, tokens);
      Random random(1);
      const Rows<float> rows = random_rows(random, tokens, 1, 16);
      EXPECT_EQ(cache.tokens_before_seal(id, 0).value(), sinks + recent + 31);
      std::size_t sealed = 0;
      for (int t = 0; t < tokens; ++t) {
        const std::int64_t room = cache.tokens_before_seal(id, 0).value();
        KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(t, 1), rows.view(t, 1)));
        const std::size_t now = sealed_pages(cache.view(id, 0).value());
        EXPECT_EQ(now, sealed + (room == 0 ? 1 : 0)) << t;
        EXPECT_EQ(cache.tokens_before_seal(id, 0).value(), room == 0 ? 31 : room - 1);
        sealed = now;
      }
      EXPECT_EQ(sealed, static_cast<std::size_t>((tokens - sinks - recent) / 32));
      // Truncation inside a sealed page starts an empty tail there.
      KVTILT_EXPECT_OK(cache.truncate(id, sinks + 40));
      EXPECT_EQ(cache.tokens_before_seal(id, 0).value(), recent + 31);
    }
}

/// Decodes one token at a time in `plain`, and drafts that end with wrong tokens in `drafted`.
void expect_same_bits(const LayerShape& shape, const Recipe& recipe, const CacheOptions& options,
                      const AttendOptions& attend_options, Random& random) {
  KVCache plain = make_cache(shape, recipe, options);
  KVCache drafted = make_cache(shape, recipe, options);
  const SequenceId one = open_reserved(plain, tokens);
  const SequenceId other = open_reserved(drafted, tokens);
  const int gqa_ratio = 3;
  const Rows<float> queries = random_queries(random, shape, tokens, gqa_ratio);
  const Rows<float> keys = random_rows(random, tokens, shape.kv_heads, shape.key_dim);
  const Rows<float> values = random_rows(random, tokens, shape.kv_heads, shape.value_dim);
  const Rows<float> wrong = random_rows(random, tokens, shape.kv_heads, 64, 50.0f);
  const auto some = [](const Rows<float>& rows, std::int64_t first, std::int64_t count) {
    Rows<float> part(count, rows.heads, rows.dim);
    std::memcpy(part.data.data(), rows.view(first, count).data, part.data.size() * sizeof(float));
    return part;
  };
  const auto garbage = [&](std::int64_t count, int dim) {
    return TensorView(wrong.data.data(), count, shape.kv_heads, dim);
  };
  int rejected = 0;
  for (std::int64_t start = 0; start < tokens;) {
    const std::int64_t room = drafted.tokens_before_seal(other, 0).value();
    const std::int64_t most = std::min<std::int64_t>(
        {room > 0 ? room - 1 : options.page_tokens - 1, tokens - start - 1, 8});
    const std::int64_t count = 1 + random.below(static_cast<int>(most) + 1);
    const std::int64_t right = 1 + random.below(static_cast<int>(count));
    KVTILT_EXPECT_OK(drafted.append(other, 0, keys.view(start, right), values.view(start, right)));
    KVTILT_EXPECT_OK(drafted.append(other, 0, garbage(count - right, shape.key_dim),
                                    garbage(count - right, shape.value_dim)));
    const Output together =
        attended(drafted.view(other, 0).value(), some(queries, start, count), attend_options);
    KVTILT_EXPECT_OK(drafted.truncate(other, start + right));
    rejected += static_cast<int>(count - right);

    const std::size_t row = static_cast<std::size_t>(shape.kv_heads * gqa_ratio * shape.value_dim);
    for (std::int64_t t = 0; t < right; ++t) {
      KVTILT_EXPECT_OK(plain.append(one, 0, keys.view(start + t, 1), values.view(start + t, 1)));
      const Output alone =
          attended(plain.view(one, 0).value(), some(queries, start + t, 1), attend_options);
      const float* drafted_row = &together.out.data[static_cast<std::size_t>(t) * row];
#if defined(__FAST_MATH__)  // compilers may then order the operations of one row and of four apart
      for (std::size_t i = 0; i < row; ++i)
        EXPECT_NEAR(drafted_row[i], alone.out.data[i], 0.02f) << "token " << start + t;
#else
      EXPECT_EQ(std::memcmp(drafted_row, alone.out.data.data(), row * sizeof(float)), 0)
          << "token " << start + t;
#endif
    }
    start += right;
    const LayerView a = plain.view(one, 0).value();
    const LayerView b = drafted.view(other, 0).value();
    ASSERT_EQ(a.page_count, b.page_count);
    for (std::int32_t page = 0; page < a.page_count; ++page)
      EXPECT_TRUE(test::same_entry(a.pages[page], b.pages[page])) << page;
  }
  EXPECT_GT(rejected, tokens / 10);
}

TEST(KVCacheDraftProperty, DraftsThatSealNothingReadAndLeaveTheBitsOfPlainDecoding) {
  Random random(7);
  const LayerShape shape{2, 64, 32, 0};
  LayerShape windowed = shape;
  windowed.window = 50;
  LayerShape wide = shape;
  wide.window = 150;  // begins inside the pages that are joined to 128 slots
  const std::vector<float> slopes(6, 0.05f);
  AttendOptions capped = test::exact_options();
  capped.soft_cap = 5.0f;
  capped.alibi_slopes = slopes;
  for (const Isa isa : test::usable_isas())
    for (const char* name : {"k4v2", "k8v8", "k3tv2:g64,32", "k16v16", "k1v5"})
      for (const int recent : {0, 20}) {
        CacheOptions options;
        options.page_tokens = 32;
        options.recent_tokens = recent;
        options.isa = isa;
        const Recipe recipe = parse_recipe(name).value();
        expect_same_bits(shape, recipe, options, {}, random);
        expect_same_bits(windowed, recipe, options, capped, random);
        expect_same_bits(wide, recipe, options, {}, random);
      }
}

TEST(KVCacheDraftHostile, UnknownLayersAndSequencesAreNamed) {
  KVCache cache = make_cache({1, 16, 16, 0}, presets::k4v2);
  EXPECT_EQ(cache.tokens_before_seal({}, 0).code(), ErrorCode::InvalidArgument);
  const SequenceId id = open_reserved(cache, 1);
  EXPECT_EQ(cache.tokens_before_seal(id, 1).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(cache.tokens_before_seal(id, -1).code(), ErrorCode::InvalidArgument);
}

}  // namespace
}  // namespace kvtilt
