// SPDX-License-Identifier: MIT
/// supports() says Ok exactly where a cache can be created and works, over all widths, groups,
/// pages and head dimensions; a refusal names a number.
#include <kvtilt/cache/options.hpp>

#include "support/all_formats.hpp"
#include "support/caches.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using testing::HasSubstr;

constexpr int page_sizes[] = {32, 64, 128};
constexpr Granularity granularities[] = {Granularity::PerChannel, Granularity::PerToken};

Format make_format(int bits, Granularity granularity, int group) {
  return {bits, granularity, group, bits == half_bits ? RangeRule::MinMax : default_rule(bits)};
}

/// The rules of the design, written a second time.
bool is_legal(const Format& format, int dim, int page) {
  if (dim < 8 || dim > 576 || dim % 8 != 0) return false;
  if (format.bits == 16) return format.group == 0;
  if (format.bits < 1 || format.bits > 8 || format.group < 0) return false;
  if (format.granularity == Granularity::PerChannel)  // in lines of 16; groups end with the page
    return format.group == 0 || (format.group % 16 == 0 && page % format.group == 0);
  if (format.group == 0) return true;
  if (format.group >= dim) return dim <= 128;  // one group per head
  return format.group % 16 == 0 && format.group <= 128;
}

template <class FormatList = AllFormats>
Result<KVCache> create(const LayerShape& shape, const Recipe& recipe, int page) {
  CacheOptions options;
  options.page_tokens = page;
  options.recent_tokens = 0;
  options.sink_tokens = 0;
  options.max_sequences = 1;
  return KVCache::create<FormatList>(CacheShape{{shape}}, Plan{{{recipe}}}, options);
}

/// supports() and create() both accept or both refuse, as `legal` says.
template <class FormatList = AllFormats>
bool agree(const LayerShape& shape, const Recipe& recipe, int page, bool legal) {
  const Status status = supports<FormatList>(shape, recipe, page);
  const Result<KVCache> cache = create<FormatList>(shape, recipe, page);
  return status.ok() == legal && cache.ok() == legal && cache.code() == status.code();
}

/// Fills a page and one token more, and attends to both pages.
void use(KVCache cache, const LayerShape& shape, int page) {
  const SequenceId id = test::open_reserved(cache, page + 1);
  Random random(1);
  const Rows<float> keys = random_rows(random, page + 1, shape.kv_heads, shape.key_dim);
  const Rows<float> values = random_rows(random, page + 1, shape.kv_heads, shape.value_dim);
  KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  const LayerView view = cache.view(id, 0).value();
  ASSERT_EQ(view.page_count, 2);
  EXPECT_EQ(view.pages[0].kind, PageKind::Sealed);
  EXPECT_TRUE(test::attends_within_bound(view, test::random_queries(random, shape, 1, 2)));
}

TEST(Supports, EveryFormatAtEveryHeadDimensionAndPage) {
  int accepted = 0;
  int refused = 0;
  for (const int bits : test::storage_widths)
    for (const Granularity granularity : granularities)
      for (const int page : page_sizes)
        for (int dim = 8; dim <= 576; dim += 8)
          for (const int group :
               {0, 1, 8, 15, 16, 24, 32, 48, 64, 80, 96, 112, 128, 136, 144, 256, 576, dim}) {
            const Format format = make_format(bits, granularity, group);
            const bool legal = is_legal(format, dim, page);
            (legal ? accepted : refused) += 1;
            ASSERT_TRUE(agree({1, dim, 64, 0}, {format, {}}, page, legal) &&
                        agree({1, 64, dim, 0}, {{}, format}, page, legal))
                << to_string(Recipe{format, format}) << ", dim " << dim << ", page " << page;
          }
  EXPECT_GT(accepted, 20000);
  EXPECT_GT(refused, 20000);
}

TEST(Supports, EveryPairOfFormatsAtEveryPairOfHeadDimensions) {
  std::size_t asked = 0;
  for (const int key_bits : test::storage_widths)
    for (const int value_bits : test::storage_widths)
      for (const Granularity key_granularity : granularities)
        for (const Granularity value_granularity : granularities) {
          const Recipe recipe{make_format(key_bits, key_granularity, 0),
                              make_format(value_bits, value_granularity, 0)};
          for (int key_dim = 8; key_dim <= 576; key_dim += 8)
            for (int value_dim = 8; value_dim <= 576; value_dim += 8) {
              const LayerShape shape{1, key_dim, value_dim, 0};
              ASSERT_TRUE(supports(shape, recipe).ok()) << to_string(recipe);
              if (++asked % 61 == 0) {  // coprime to all loop counts
                ASSERT_TRUE(create(shape, recipe, 64).ok()) << to_string(recipe);
              }
            }
        }
}

TEST(Supports, OnePairInvalidInEitherHalfIsRefused) {
  const Format good = make_format(4, Granularity::PerToken, 32);
  for (const Granularity granularity : granularities)
    for (const int bits : {1, 4, 8, 16}) {
      const Format bad = make_format(bits, granularity, 40);
      EXPECT_TRUE(agree({1, 64, 64, 0}, {bad, good}, 64, false));
      EXPECT_TRUE(agree({1, 64, 64, 0}, {good, bad}, 64, false));
      EXPECT_TRUE(agree({1, 64, 64, 0}, {bad, bad}, 64, false));
      EXPECT_TRUE(agree({1, 64, 64, 0}, {good, good}, 64, true));
    }
}

template <class FormatList>
void check_list(std::vector<int> key_bits, std::vector<int> value_bits) {
  const auto contains = [](const std::vector<int>& list, int bits) {
    return bits == half_bits || std::find(list.begin(), list.end(), bits) != list.end();
  };
  const LayerShape shape{1, 72, 40, 0};
  for (const int key : test::storage_widths)
    for (const int value : test::storage_widths)
      for (const Granularity granularity : granularities) {
        const Recipe recipe{make_format(key, granularity, 0), make_format(value, granularity, 0)};
        const bool key_ok = contains(key_bits, key);
        const bool value_ok = contains(value_bits, value);
        EXPECT_TRUE(agree<FormatList>(shape, recipe, 32, key_ok && value_ok)) << to_string(recipe);
        if (key_ok && value_ok) {
          use(create<FormatList>(shape, recipe, 32).value(), shape, 32);
          continue;
        }
        const Status status = supports<FormatList>(shape, recipe, 32);
        EXPECT_EQ(status.code(), ErrorCode::Unsupported);
        EXPECT_THAT(std::string(status.message()),
                    HasSubstr(key_ok ? "values of " + std::to_string(value) + " bits"
                                     : "keys of " + std::to_string(key) + " bits"));
      }
}

TEST(Supports, AShorterListSupportsItsWidthsAndSixteenBits) {
  check_list<test::UnequalFormats>({3, 8}, {3});
  check_list<test::NoFormats>({}, {});
}

TEST(Supports, WhatIsSupportedSealsAndAttends) {
  const LayerShape shapes[] = {
      {1, 8, 16, 0}, {2, 72, 40, 0}, {1, 64, 64, 0}, {1, 192, 128, 0}, {1, 576, 512, 0}};
  for (const int key_bits : test::storage_widths)
    for (const int value_bits : test::storage_widths)
      for (const Granularity key_granularity : granularities)
        for (const Granularity value_granularity : granularities)
          for (const LayerShape& shape : shapes) {
            const bool large = shape.key_dim > 128;  // these take long: one format for both
            if (large && (key_bits != value_bits || key_granularity != value_granularity)) continue;
            const Recipe recipe{make_format(key_bits, key_granularity, 0),
                                make_format(value_bits, value_granularity, 0)};
            SCOPED_TRACE(to_string(recipe) + ", " + std::to_string(shape.key_dim));
            ASSERT_TRUE(supports(shape, recipe, 32).ok());
            use(create(shape, recipe, 32).value(), shape, 32);
          }
}

TEST(Supports, EveryGroupSealsAndAttends) {
  const LayerShape shape{1, 136, 72, 0};
  for (const int page : page_sizes)
    for (const int bits : {1, 3, 8})
      for (const Granularity granularity : granularities)
        for (int group = 16; group <= 128; group += 16) {
          const Format format = make_format(bits, granularity, group);
          if (!supports(shape, {format, format}, page).ok()) continue;
          SCOPED_TRACE("group " + std::to_string(group) + ", page " + std::to_string(page));
          use(create(shape, {format, format}, page).value(), shape, page);
        }
}

TEST(SupportsHostile, EveryRefusalNamesTheValue) {
  const auto refusal = [](const LayerShape& shape, const Recipe& recipe, int page) {
    const Status status = supports(shape, recipe, page);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_FALSE(create(shape, recipe, page).ok());
    return std::string(status.message());
  };
  const auto format_refusal = [&](const Format& format, int dim, int page) {
    const std::string keys = refusal({1, dim, 64, 0}, {format, {}}, page);
    const std::string values = refusal({1, 64, dim, 0}, {{}, format}, page);
    EXPECT_THAT(keys, HasSubstr("keys: "));
    EXPECT_THAT(values, HasSubstr("values: "));
    for (const std::string& message : {keys, values}) {
      EXPECT_THAT(message, HasSubstr(std::to_string(format.bits) + " bits"));
      EXPECT_THAT(message, HasSubstr("group " + std::to_string(format.group)));
      EXPECT_THAT(message, HasSubstr("head dimension " + std::to_string(dim)));
      EXPECT_THAT(message, HasSubstr("pages of " + std::to_string(page) + " tokens"));
    }
  };
  for (const int page : page_sizes)
    for (int dim = 8; dim <= 576; dim += 8)
      for (const int bits : {1, 4, 8, 16})
        for (const Granularity granularity : granularities)
          for (const int group : {-2147483647 - 1, -16, 1, 15, 17, 24, 96, 136, 256, 2147483647}) {
            const Format format = make_format(bits, granularity, group);
            if (!is_legal(format, dim, page)) format_refusal(format, dim, page);
          }
  for (const int bits : {-2147483647 - 1, -1, 0, 9, 10, 15, 17, 32, 2147483647})
    for (const Granularity granularity : granularities)
      format_refusal({bits, granularity, 0, RangeRule::MinMax}, 64, 64);
  for (const int bits : test::storage_widths)
    for (const RangeRule rule : {RangeRule::MinMax, RangeRule::MinMse, RangeRule::Centroids}) {
      const bool legal = bits == 16 || (rule == RangeRule::Centroids) == (bits == 1);
      if (!legal || (rule == RangeRule::MinMse && bits > 5 && bits < 16))
        format_refusal({bits, Granularity::PerToken, 0, rule}, 64, 64);
    }
  for (const int dim : {-8, 0, 1, 7, 12, 63, 65, 100, 577, 584, 1024, 2147483640}) {
    EXPECT_THAT(refusal({1, dim, 64, 0}, presets::k4v2, 64),
                HasSubstr("key " + std::to_string(dim) + ", value 64"));
    EXPECT_THAT(refusal({1, 64, dim, 0}, presets::k4v2, 64),
                HasSubstr("key 64, value " + std::to_string(dim)));
  }
  for (const int page : {-64, 0, 1, 16, 48, 96, 256})
    EXPECT_THAT(refusal({1, 64, 64, 0}, presets::k4v2, page),
                HasSubstr("page_tokens is " + std::to_string(page)));
}

}  // namespace
}  // namespace kvtilt
