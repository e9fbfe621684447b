// SPDX-License-Identifier: MIT
/// Helpers that make a cache, fill it, save it and attend to it.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include "support/attention_oracle.hpp"
#include "support/isas.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace kvtilt::test {

/// For calls that cannot fail in this test.
#define KVTILT_EXPECT_OK(expression)                                      \
  do {                                                                    \
    const ::kvtilt::Status kvtilt_expected_ok = (expression);             \
    EXPECT_TRUE(kvtilt_expected_ok.ok()) << kvtilt_expected_ok.message(); \
  } while (false)

/// Throws, and so fails the test, if creation fails.
inline KVCache make_cache(const CacheShape& shape, const Plan& plan,
                          const CacheOptions& options = {}) {
  return KVCache::create(shape, plan, options).value();
}

inline KVCache make_cache(const LayerShape& shape, const Recipe& recipe,
                          const CacheOptions& options = {}) {
  const CacheShape one{{shape}};
  return make_cache(one, Plan::uniform(one, recipe), options);
}

inline SequenceId open_reserved(KVCache& cache, std::int64_t tokens) {
  const SequenceId id = cache.open().value();
  KVTILT_EXPECT_OK(cache.reserve(id, tokens));
  return id;
}

inline std::vector<std::byte> saved(const KVCache& cache, SequenceId id) {
  std::vector<std::byte> image(cache.saved_bytes(id).value(), std::byte{0xa5});
  KVTILT_EXPECT_OK(cache.save(id, image));
  return image;
}

/// Queries for one layer: `gqa_ratio` query heads per kv head.
inline Rows<float> random_queries(Random& random, const LayerShape& shape, std::int64_t tokens,
                                  int gqa_ratio, float spread = 1.0f) {
  return random_rows(random, tokens, shape.kv_heads * gqa_ratio, shape.key_dim, spread);
}

/// attend() with a fresh workspace of exactly the bytes it asks for.
inline Output attended(const LayerView& view, const Rows<float>& queries,
                       const AttendOptions& options = exact_options()) {
  Output output(queries.tokens, queries.heads, view.shape.value_dim);
  std::vector<std::byte> workspace(attend_workspace_bytes(view), std::byte{0xff});
  KVTILT_EXPECT_OK(attend(view, queries.view(), output.view(), options, workspace));
  return output;
}

inline testing::AssertionResult attends_within_bound(
    const LayerView& view, const Rows<float>& queries,
    const AttendOptions& options = exact_options()) {
  return keeps_bound(view, queries, options, attended(view, queries, options));
}

inline constexpr int storage_widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 16};

template <class T>
T pick(Random& random, std::initializer_list<T> choices) {
  return choices.begin()[random.below(static_cast<int>(choices.size()))];
}

/// A random format that resolves for `dim` and `page_tokens`.
inline Format random_format(Random& random, int dim, int page_tokens) {
  const int bits = storage_widths[random.below(static_cast<int>(std::size(storage_widths)))];
  if (bits == half_bits) return {};
  const Granularity granularity =
      random.chance(2) ? Granularity::PerChannel : Granularity::PerToken;
  std::vector<int> groups = {0};
  for (int group = 16; group <= max_group; group += 16)
    if (granularity == Granularity::PerToken || page_tokens % group == 0) groups.push_back(group);
  const int group = groups[static_cast<std::size_t>(random.below(static_cast<int>(groups.size())))];
  Format format{bits, granularity, group, default_rule(bits)};
  if (bits >= 2 && bits <= 5 && random.chance(4)) format.rule = RangeRule::MinMax;
  EXPECT_TRUE(resolve_format(format, "test", dim, page_tokens).ok());
  return format;
}

}  // namespace kvtilt::test
