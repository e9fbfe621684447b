// SPDX-License-Identifier: MIT
#include <kvtilt/attention/attend_prefill.hpp>

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

using test::Output;
using test::Random;
using test::random_queries;
using test::random_rows;
using test::Rows;
using test::StoredHead;

/// The past as the cache stores it, then the chunk in fp16.
std::vector<StoredHead> past_and_chunk(const LayerView& past, const Rows<float>& keys,
                                       const Rows<float>& values) {
  std::vector<StoredHead> stored;
  for (int head = 0; head < past.shape.kv_heads; ++head) {
    stored.push_back(test::stored_head(past, head));
    stored.back().add(test::rounded_to_half(keys), test::rounded_to_half(values), head);
  }
  return stored;
}

Output prefilled(const LayerView& past, const Rows<float>& queries, const TensorView& keys,
                 const TensorView& values) {
  Output output(queries.tokens, queries.heads, past.shape.value_dim);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(past, queries.tokens),
                                   std::byte{0xff});
  KVTILT_EXPECT_OK(attend_prefill(past, queries.view(), keys, values, output.view(),
                                  test::exact_options(), workspace));
  return output;
}

/// Appends chunk after chunk to a new sequence, attending before each append.
void prefill_in_chunks(const LayerShape& shape, const Recipe& recipe, const CacheOptions& options,
                       const std::vector<int>& chunks, int gqa_ratio, std::uint64_t seed) {
  Random random(seed);
  KVCache cache = test::make_cache(shape, recipe, options);
  const SequenceId id = test::open_reserved(cache, 2000);
  for (const int chunk : chunks) {
    const Rows<float> keys = random_rows(random, chunk, shape.kv_heads, shape.key_dim);
    const Rows<float> values = random_rows(random, chunk, shape.kv_heads, shape.value_dim);
    const Rows<float> queries = random_queries(random, shape, chunk, gqa_ratio);
    const LayerView past = cache.view(id, 0).value();
    const test::Snapshot before(past);
    const Output output = prefilled(past, queries, keys.view(), values.view());
    EXPECT_TRUE(test::keeps_bound(past_and_chunk(past, keys, values), queries, past.length,
                                  shape.window, test::logit_scale(past, {}), output))
        << to_string(recipe) << ", chunk of " << chunk << " after " << past.length << ", "
        << shape.key_dim << "/" << shape.value_dim << ", window " << shape.window << ", seed "
        << seed;
    EXPECT_TRUE(test::unchanged(before, cache.view(id, 0).value()));
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  }
}

TEST(AttendPrefillProperty, KeepsTheBoundForEveryChunkLength) {
  CacheOptions options;
  options.recent_tokens = 16;
  for (const Isa isa : test::usable_isas()) {
    options.isa = isa;
    for (const int page : {32, 64, 128})
      for (const int window : {0, 1, 70}) {
        options.page_tokens = page;
        prefill_in_chunks({2, 64, 64, window}, presets::k4v2, options,
                          {1, 2, 63, 64, 65, 1, 127, 33}, 2, 1);
      }
  }
}

TEST(AttendPrefillProperty, KeepsTheBoundForEveryShape) {
  CacheOptions options;
  options.recent_tokens = 0;
  options.page_tokens = 32;
  for (const Isa isa : test::usable_isas()) {
    options.isa = isa;
    for (const LayerShape& shape :
         {LayerShape{1, 8, 8, 0}, LayerShape{3, 72, 72, 0}, LayerShape{1, 192, 128, 0},
          LayerShape{1, 576, 512, 0}, LayerShape{2, 80, 112, 0}})
      prefill_in_chunks(shape, parse_recipe("k3v5c").value(), options, {40, 40, 17}, 3, 2);
  }
}

TEST(AttendPrefillRandom, KeepsTheBoundForAnything) {
  for (const Isa isa : test::usable_isas())
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      Random random(seed);
      CacheOptions options;
      options.isa = isa;
      options.page_tokens = test::pick(random, {32, 64, 128});
      options.sink_tokens = random.between(0, 20);
      options.recent_tokens = random.between(0, 100);
      const LayerShape shape{random.between(1, 2), 8 * random.between(1, 12),
                             8 * random.between(1, 12),
                             random.chance(3) ? random.between(1, 150) : 0};
      const Recipe recipe{test::random_format(random, shape.key_dim, options.page_tokens),
                          test::random_format(random, shape.value_dim, options.page_tokens)};
      std::vector<int> chunks;
      for (int i = 0; i < 4; ++i) chunks.push_back(random.between(1, 80));
      prefill_in_chunks(shape, recipe, options, chunks, random.between(1, 5), seed);
    }
}

TEST(AttendPrefill, ChunkingDoesNotChangeTheCache) {
  Random random(3);
  const LayerShape shape{2, 72, 72, 0};
  const Rows<float> keys = random_rows(random, 500, 2, 72);
  const Rows<float> values = random_rows(random, 500, 2, 72);
  const Rows<float> queries = random_queries(random, shape, 500, 1);
  KVCache cache = test::make_cache(shape, presets::k3v2);
  const SequenceId whole = test::open_reserved(cache, 500);
  KVTILT_EXPECT_OK(cache.append(whole, 0, keys.view(), values.view()));
  for (const int chunk : {1, 7, 64, 200, 499}) {
    const SequenceId id = test::open_reserved(cache, 500);
    std::vector<std::byte> workspace;
    for (std::int64_t first = 0; first < 500; first += chunk) {
      const std::int64_t some = std::min<std::int64_t>(chunk, 500 - first);
      const LayerView past = cache.view(id, 0).value();
      workspace.resize(attend_prefill_workspace_bytes(past, some));
      Output output(some, 2, 72);
      KVTILT_EXPECT_OK(attend_prefill(past, queries.view(first, some), keys.view(first, some),
                                      values.view(first, some), output.view(),
                                      test::exact_options(), workspace));
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(first, some), values.view(first, some)));
    }
    EXPECT_TRUE(test::same_content(cache.view(whole, 0).value(), cache.view(id, 0).value()))
        << "chunks of " << chunk;
    KVTILT_EXPECT_OK(cache.close(id));
  }
}

TEST(AttendPrefill, AChunkOnAnEmptyCacheIsSixteenBitAttention) {
  Random random(4);
  const LayerShape shape{2, 64, 64, 0};
  const Rows<float> keys = random_rows(random, 150, 2, 64);
  const Rows<float> values = random_rows(random, 150, 2, 64);
  const Rows<float> queries = random_queries(random, shape, 150, 2);
  KVCache quantized = test::make_cache(shape, presets::k2v2);
  const SequenceId empty = test::open_reserved(quantized, 0);
  const Output first =
      prefilled(quantized.view(empty, 0).value(), queries, keys.view(), values.view());

  KVCache plain = test::make_cache(shape, presets::k16v16);
  const SequenceId id = test::open_reserved(plain, 150);
  KVTILT_EXPECT_OK(plain.append(id, 0, keys.view(), values.view()));
  const Output second = test::attended(plain.view(id, 0).value(), queries);
  for (std::size_t i = 0; i < first.out.data.size(); ++i)
    ASSERT_NEAR(first.out.data[i], second.out.data[i], 2e-5) << i;
  for (std::size_t i = 0; i < first.lse.size(); ++i)
    ASSERT_NEAR(first.lse[i], second.lse[i], 2e-5) << i;
}

TEST(AttendPrefill, ReadsEveryStridedElementType) {
  Random random(5);
  const LayerShape shape{2, 32, 32, 0};
  KVCache cache = test::make_cache(shape, presets::k4v2);
  const SequenceId id = test::open_reserved(cache, 50);
  const Rows<float> past = random_rows(random, 50, 2, 32);
  KVTILT_EXPECT_OK(cache.append(id, 0, past.view(), past.view()));
  const LayerView view = cache.view(id, 0).value();

  const Rows<BF16> bf16 = test::converted<BF16>(random_rows(random, 9, 2, 32), to_bf16);
  const Rows<float> plain = test::converted<float>(bf16, [](BF16 x) { return to_float(x); });
  const Rows<F16> f16 = test::converted<F16>(plain, to_f16);
  Rows<float> reversed(9, 2, 32);
  for (int t = 0; t < 9; ++t)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 32; ++c) reversed.at(8 - t, h, c) = plain.at(t, h, c);
  const TensorView backwards = TensorView(&reversed.at(8, 0, 0), 9, 2, 32).with_strides(-64, 32);

  const Rows<float> queries = random_queries(random, shape, 9, 2);
  const Output expected = prefilled(view, queries, plain.view(), plain.view());
  for (const TensorView& chunk : {bf16.view(), f16.view(), backwards}) {
    const Output output = prefilled(view, queries, chunk, chunk);
    EXPECT_EQ(output.out.data, expected.out.data);
    EXPECT_EQ(output.lse, expected.lse);
  }
}

/// The chunk brings 4, 2 or 0 of the sinks itself, and is longer than the window.
TEST(AttendPrefill, ShowsSinksThatTheChunkBrings) {
  LayerShape shape{1, 64, 64, 16};
  shape.keep_sinks = true;
  CacheOptions options;
  options.sink_tokens = 4;
  for (const int past : {0, 2, 4}) {
    Random random(static_cast<std::uint64_t>(past) + 9);
    KVCache cache = test::make_cache(shape, presets::k16v16, options);
    const SequenceId id = test::open_reserved(cache, 100);
    const Rows<float> rows = random_rows(random, past + 64, 1, 64);
    const Rows<float> queries = random_queries(random, shape, 64, 2);
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(0, past), rows.view(0, past)));
    const Output chunk =
        prefilled(cache.view(id, 0).value(), queries, rows.view(past, 64), rows.view(past, 64));
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(past, 64), rows.view(past, 64)));
    const Output whole = test::attended(cache.view(id, 0).value(), queries, test::exact_options());
    for (std::size_t i = 0; i < whole.out.data.size(); ++i)
      ASSERT_NEAR(chunk.out.data[i], whole.out.data[i], 2e-5) << past << " before, " << i;
  }
}

TEST(AttendPrefill, AnEmptyChunkWritesNothing) {
  KVCache cache = test::make_cache(LayerShape{1, 64, 64, 0}, presets::k4v2);
  const SequenceId id = test::open_reserved(cache, 10);
  const LayerView view = cache.view(id, 0).value();
  KVTILT_EXPECT_OK(attend_prefill(view, TensorView(static_cast<const float*>(nullptr), 0, 1, 64),
                                  TensorView(static_cast<const float*>(nullptr), 0, 1, 64),
                                  TensorView(static_cast<const float*>(nullptr), 0, 1, 64),
                                  OutputView(nullptr, 0, 1, 64), {}, {}));
}

}  // namespace
}  // namespace kvtilt
