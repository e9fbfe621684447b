// SPDX-License-Identifier: MIT
// Every option of attend(), alone and mixed, against float64.
#include <kvtilt/attention/attend.hpp>
#include <kvtilt/attention/attend_prefill.hpp>

#include "support/attend_check.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::Rows;

/// A cache whose keys and values are too small to cancel against the minimum of their group.
struct SmallRows {
  LayerShape shape;
  KVCache cache;
  SequenceId id;

  SmallRows(const LayerShape& shape_, const char* recipe, std::int64_t tokens, Random& random,
            CacheOptions options = {})
      : SmallRows{shape_, recipe,  // braces: keys are drawn before values
                  test::random_rows(random, tokens, shape_.kv_heads, shape_.key_dim),
                  test::random_rows(random, tokens, shape_.kv_heads, shape_.value_dim), options} {}
  SmallRows(const LayerShape& shape_, const char* recipe, const Rows<float>& keys,
            const Rows<float>& values, CacheOptions options = {})
      : shape(shape_),
        cache(test::make_cache(shape_, parse_recipe(recipe).value(), options)),
        id(test::open_reserved(cache, keys.tokens)) {
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  }
  [[nodiscard]] LayerView view() const { return cache.view(id, 0).value(); }
};

constexpr double codes_may_cancel = 4.0;

TEST(AttendOptionsAgreement, SoftCapBendsTheLogits) {
  Random random(1);
  for (const char* recipe : {"k16v16", "k8v8", "k4v2"}) {
    const SmallRows filled({2, 64, 64}, recipe, 300, random);
    for (const float cap : {0.5f, 5.0f, 30.0f, 50.0f})
      for (const float spread : {0.01f, 1.0f, 20.0f}) {
        const Rows<float> queries = test::random_queries(random, filled.shape, 3, 2, spread);
        AttendOptions options = test::exact_options();
        options.soft_cap = cap;
        EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                         test::attended(filled.view(), queries, options),
                                         codes_may_cancel))
            << recipe << ", cap " << cap << ", spread " << spread;
      }
  }
}

TEST(AttendOptionsAgreement, AlibiFallsOrGrowsWithDistance) {
  Random random(2);
  const SmallRows filled({2, 64, 64}, "k8v8", 700, random);
  const std::vector<float> slopes = {0.5f, 0.0078125f, 0.0f, -0.25f};
  const Rows<float> queries = test::random_queries(random, filled.shape, 5, 2);
  AttendOptions options = test::exact_options();
  options.alibi_slopes = slopes;
  EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                   test::attended(filled.view(), queries, options),
                                   codes_may_cancel));
}

// Sealed pages are joined for one softmax; truncation may have shortened the last of them.
TEST(AttendOptionsAgreement, AlibiFallsWithDistanceInPagesThatLostTokens) {
  Random random(21);
  for (const int page : {32, 64, 128})
    for (const int left : {1, 20, 31, 33, 64, 95, 100, 159, 160, 161}) {
      CacheOptions cache_options;
      cache_options.page_tokens = page;
      cache_options.recent_tokens = 0;
      cache_options.sink_tokens = 0;
      SmallRows filled({2, 64, 64}, "k8v8", 512, random, cache_options);
      KVTILT_EXPECT_OK(filled.cache.truncate(filled.id, left));
      const std::vector<float> slopes = {0.5f, 0.25f, 0.0f, 0.0078125f, 0.125f, 1.0f};
      const Rows<float> queries = test::random_queries(random, filled.shape, 1, 3);
      AttendOptions options = test::exact_options();
      options.alibi_slopes = slopes;
      EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                       test::attended(filled.view(), queries, options),
                                       codes_may_cancel))
          << left << " tokens, pages of " << page;
    }
}

TEST(AttendOptionsAgreement, SinkLogitsTakeTheirShare) {
  Random random(3);
  const SmallRows filled({1, 64, 64}, "k8v8", 200, random);
  const std::vector<float> sinks = {-40.0f, 0.0f, 3.0f, 90.0f};
  const Rows<float> queries = test::random_queries(random, filled.shape, 2, 4);
  AttendOptions options = test::exact_options();
  options.sink_logits = sinks;
  EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                   test::attended(filled.view(), queries, options),
                                   codes_may_cancel));
  options.first_position = options.end_position = 50;  // no keys: only the sink logit counts
  EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                   test::attended(filled.view(), queries, options)));
}

TEST(AttendOptionsAgreement, ASinkLogitOfMinusInfinityIsNone) {
  Random random(8);
  const SmallRows filled({1, 64, 64, 0}, "k4v4", 100, random,
                         {.page_tokens = 32, .sink_tokens = 0, .recent_tokens = 32});
  const Rows<float> queries = test::random_queries(random, filled.shape, 1, 2);
  const std::vector<float> none(2, bit_cast<float>(0xff800000u));
  AttendOptions options;
  const test::Output plain = test::attended(filled.view(), queries, options);
  options.sink_logits = none;
  const test::Output same = test::attended(filled.view(), queries, options);
  EXPECT_EQ(same.out.data, plain.out.data);
  EXPECT_EQ(same.lse, plain.lse);
}

TEST(AttendOptionsAgreement, ATreeMaskReplacesCausality) {
  Random random(4);
  for (const std::int64_t drafts : {1, 2, 5, 17, 40, 64})
    for (const std::int64_t tokens : {drafts, drafts + 3, drafts + 250}) {
      const SmallRows filled({1, 64, 64}, "k8v8", tokens, random,
                             {.page_tokens = 32, .sink_tokens = 3, .recent_tokens = 11});
      std::vector<std::uint64_t> mask;
      const Rows<float> queries = test::random_queries(random, filled.shape, drafts, 2);
      AttendOptions options = test::exact_options();
      for (const std::int64_t tree : {std::int64_t{0}, drafts, drafts + 3, std::int64_t{64}}) {
        if (tree > std::min<std::int64_t>(64, tokens)) continue;
        options.tree_tokens = static_cast<int>(tree);
        mask.clear();
        for (std::int64_t i = 0; i < drafts; ++i)
          mask.push_back(random.next() & detail::tree_bits(std::max(tree, drafts)));
        options.tree_mask = mask;
        EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                         test::attended(filled.view(), queries, options),
                                         codes_may_cancel))
            << drafts << " drafts of a tree of " << tree << " in " << tokens;
      }
    }
}

TEST(AttendOptionsAgreement, AChainAsTreeIsCausal) {
  Random random(5);
  const SmallRows filled({2, 64, 64}, "k4v2", 300, random);
  const Rows<float> queries = test::random_queries(random, filled.shape, 6, 2);
  std::vector<std::uint64_t> chain;
  for (int i = 0; i < 6; ++i) chain.push_back((std::uint64_t{2} << i) - 1);
  AttendOptions options = test::exact_options();
  options.tree_mask = chain;
  EXPECT_EQ(test::attended(filled.view(), queries, options).out.data,
            test::attended(filled.view(), queries).out.data);
}

/// `before` tokens of text, then the tokens `nodes` of a tree.
SmallRows with_nodes(const LayerShape& shape, const std::vector<int>& nodes, std::int64_t before,
                     const Rows<float>& text) {
  Rows<float> rows(before + static_cast<std::int64_t>(nodes.size()), shape.kv_heads, shape.key_dim);
  const std::int64_t row = shape.kv_heads * shape.key_dim;
  for (std::int64_t i = 0; i < rows.tokens; ++i) {
    const std::int64_t from = i < before ? i : before + nodes[static_cast<std::size_t>(i - before)];
    std::copy_n(text.data.begin() + from * row, row, rows.data.begin() + i * row);
  }
  return SmallRows(shape, "k16v16", rows, rows);
}

//  0 - 1 - 2      a tree of seven tokens, in the order of appending
//   \   \ - 4 - 6
//    3   5 behind 0
const std::vector<std::vector<int>> paths = {{0},       {0, 1}, {0, 1, 2},   {0, 3},
                                             {0, 1, 4}, {0, 5}, {0, 1, 4, 6}};

std::vector<std::uint64_t> mask_of_paths() {
  std::vector<std::uint64_t> mask;
  for (const std::vector<int>& path : paths) {
    mask.push_back(0);
    for (const int node : path) mask.back() |= std::uint64_t{1} << node;
  }
  return mask;
}

TEST(AttendOptionsAgreement, UnderAWindowANodeSeesWhatItsPathAloneWouldShow) {
  Random random(8);
  const std::vector<std::uint64_t> mask = mask_of_paths();
  for (const int window : {1, 2, 3, 4, 5, 40, 120})
    for (const std::int64_t before : {5, 90}) {  // sinks lie before the tree
      const LayerShape shape{1, 32, 32, window, true};
      const Rows<float> text = test::random_rows(random, before + 7, 1, 32);
      const Rows<float> queries = test::random_queries(random, shape, 7, 1);
      AttendOptions options = test::exact_options();
      options.tree_mask = mask;
      const SmallRows tree = with_nodes(shape, {0, 1, 2, 3, 4, 5, 6}, before, text);
      const test::Output output = test::attended(tree.view(), queries, options);
      for (std::size_t node = 0; node < paths.size(); ++node) {
        const SmallRows alone = with_nodes(shape, paths[node], before, text);
        Rows<float> query(1, 1, 32);
        std::copy_n(queries.data.begin() + static_cast<std::ptrdiff_t>(node) * 32, 32,
                    query.data.begin());
        const test::Output expected = test::attended(alone.view(), query, test::exact_options());
        for (std::size_t i = 0; i < 32; ++i)
          ASSERT_NEAR(output.out.data[node * 32 + i], expected.out.data[i], 1e-5)
              << "node " << node << ", window " << window << " behind " << before;
      }
    }
}

TEST(AttendOptionsAgreement, ATreeGrownByLevelsGivesWhatTheWholeTreeGives) {
  Random random(10);
  const std::vector<std::uint64_t> mask = mask_of_paths();
  for (const int window : {0, 3, 40})
    for (const std::int64_t before : {1, 5, 90}) {  // 1: the tree holds sinks
      const LayerShape shape{1, 32, 32, window, true};
      const Rows<float> text = test::random_rows(random, before + 7, 1, 32);
      const Rows<float> queries = test::random_queries(random, shape, 7, 1);
      AttendOptions options = test::exact_options();
      options.tree_mask = mask;
      const SmallRows whole = with_nodes(shape, {0, 1, 2, 3, 4, 5, 6}, before, text);
      const test::Output expected = test::attended(whole.view(), queries, options);
      int first = 0;
      for (const int end : {1, 4, 6, 7}) {  // levels, each appended and attended on its own
        std::vector<int> nodes(static_cast<std::size_t>(end));
        std::iota(nodes.begin(), nodes.end(), 0);
        const SmallRows level = with_nodes(shape, nodes, before, text);
        Rows<float> asking(end - first, 1, 32);
        std::copy_n(queries.data.begin() + first * 32, asking.data.size(), asking.data.begin());
        options.tree_mask = std::span(mask).subspan(static_cast<std::size_t>(first),
                                                    static_cast<std::size_t>(end - first));
        options.tree_tokens = end;
        const test::Output output = test::attended(level.view(), asking, options);
        for (std::size_t i = 0; i < asking.data.size(); ++i)
          ASSERT_NEAR(output.out.data[i],
                      expected.out.data[static_cast<std::size_t>(first) * 32 + i], 1e-6)
              << "level " << first << " to " << end << ", window " << window;
        first = end;
      }
    }
}

TEST(AttendOptionsRandom, MixedOptionsFollowTheOracle) {
  Random random(6);
  for (int round = 0; round < 150; ++round) {
    LayerShape shape{random.between(1, 2), 8 * random.between(1, 12), 8 * random.between(1, 12)};
    shape.window = random.chance(2) ? 0 : random.between(1, 300);
    shape.keep_sinks = random.chance(2);
    const int gqa_ratio = random.between(1, 5);
    const int tokens = random.between(1, 500);
    const SmallRows filled(shape, random.chance(2) ? "k16v16" : "k8v8", tokens, random,
                           {.page_tokens = 32 << random.below(3),
                            .sink_tokens = random.below(20),
                            .recent_tokens = random.between(8, 100)});
    const int queries_count = random.between(1, std::min(8, tokens));
    const Rows<float> queries = test::random_queries(random, shape, queries_count, gqa_ratio);
    std::vector<float> slopes;
    std::vector<float> sinks;
    std::vector<std::uint64_t> tree;
    for (int head = 0; head < queries.heads; ++head) {
      slopes.push_back(static_cast<float>(random.uniform(-0.1, 0.1)));
      sinks.push_back(static_cast<float>(random.normal() * 3));
    }
    AttendOptions options = test::exact_options();
    if (random.chance(2)) options.scale = static_cast<float>(random.uniform(0.01, 0.3));
    if (random.chance(2)) options.soft_cap = static_cast<float>(random.uniform(1, 60));
    if (random.chance(2)) options.alibi_slopes = slopes;
    if (random.chance(2)) options.sink_logits = sinks;
    if (random.chance(2)) {
      if (random.chance(2))
        options.tree_tokens = random.between(queries_count, std::min(64, tokens));
      for (int i = 0; i < queries_count; ++i)
        tree.push_back(random.next() &
                       detail::tree_bits(std::max(queries_count, options.tree_tokens)));
      options.tree_mask = tree;
    } else {
      options.causal = random.chance(2);
    }
    if (random.chance(3)) options.window = random.between(1, shape.window > 0 ? shape.window : 400);
    if (random.chance(3)) options.first_position = random.below(tokens + 3);
    if (random.chance(3)) options.end_position = options.first_position + random.below(tokens);
    ASSERT_TRUE(test::follows_oracle(filled.view(), queries, options,
                                     test::attended(filled.view(), queries, options),
                                     codes_may_cancel))
        << "round " << round;
  }
}

TEST(AttendOptionsHostile, WhatCannotBeMeantIsRefusedByName) {
  Random random(7);
  const SmallRows filled({1, 64, 64, 50}, "k4v4", 300, random,
                         {.page_tokens = 32, .sink_tokens = 0, .recent_tokens = 32});
  const Rows<float> queries = test::random_queries(random, filled.shape, 2, 2);
  test::Output output(2, 2, 64);
  std::vector<std::byte> workspace(attend_workspace_bytes(filled.view()));
  const std::vector<float> three(3, 0.0f);
  const std::vector<std::uint64_t> one(1, 1);
  const auto refused = [&](const AttendOptions& options, const char* word) {
    const Status status = attend(filled.view(), queries.view(), output.view(), options, workspace);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << word;
    EXPECT_NE(std::string(status.message()).find(word), std::string::npos) << status.message();
  };
  refused({.soft_cap = -1.0f}, "soft_cap is -1");
  refused({.window = -3}, "window is -3");
  refused({.window = 51}, "wider than the layer's 50");
  refused({.alibi_slopes = three}, "3 ALiBi slopes for 2");
  refused({.sink_logits = three}, "3 sink logits for 2");
  refused({.tree_mask = one}, "1 words for 2");
  const std::vector<std::uint64_t> two(2, 1);
  refused({.tree_mask = two, .causal = false}, "causal = false");
  refused({.tree_mask = two, .tree_tokens = 1}, "1 tree_tokens for 2 queries");
  refused({.tree_mask = two, .tree_tokens = -1}, "-1 tree_tokens");
  refused({.tree_mask = two, .tree_tokens = 65}, "65 tree_tokens");
  refused({.tree_tokens = 2}, "without a tree mask");
  const std::vector<std::uint64_t> beyond = {1, 0x8000000000000015u};
  refused({.tree_mask = beyond}, "query 1 has bit 2 in the tree mask, but the tree has 2 tokens");
  refused({.tree_mask = beyond, .tree_tokens = 4},
          "query 1 has bit 4 in the tree mask, but the tree has 4 tokens");
  refused({.tree_mask = beyond, .tree_tokens = 63},
          "query 1 has bit 63 in the tree mask, but the tree has 63 tokens");
  const SmallRows few({1, 64, 64}, "k4v4", 10, random);
  const AttendOptions long_tree{.tree_mask = two, .tree_tokens = 11};
  EXPECT_EQ(std::string(
                attend(few.view(), queries.view(), output.view(), long_tree, workspace).message()),
            "11 tree_tokens in a sequence of 10");
  // A window of 50 keeps what the two newest tokens see, but not what a tree of 64 sees.
  refused({.tree_mask = two, .tree_tokens = 64}, "sees back to position 187");
  refused({.scale = 2e30f}, "scale is 2e+30");
  refused({.soft_cap = 2e30f}, "soft_cap is 2e+30");
  for (const std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800000u, 0xff800000u}) {
    const std::vector<float> wrong = {0.0f, bit_cast<float>(bits)};
    refused({.alibi_slopes = wrong}, "slope of head 1 is");
    if (bits != 0xff800000u) refused({.sink_logits = wrong}, "sink logit of head 1 is");
  }
  const std::vector<float> huge = {2e30f, 0.0f};
  refused({.alibi_slopes = huge}, "slope of head 0 is 2e+30");
  refused({.sink_logits = huge}, "sink logit of head 0 is 2e+30");
  refused({.first_position = 5, .end_position = 4}, "5 to 4");
  EXPECT_EQ(output.out.data[0], 77.0f);
}

TEST(AttendOptionsAgreement, PrefillTakesTheSameOptions) {
  // At 16 bits, attending to a chunk before it is appended equals attending to it afterwards.
  Random random(8);
  const LayerShape shape{2, 64, 72};
  SmallRows filled(shape, "k16v16", 100, random);
  KVTILT_EXPECT_OK(filled.cache.reserve(filled.id, 200));
  const Rows<float> keys = test::random_rows(random, 20, 2, 64);
  const Rows<float> values = test::random_rows(random, 20, 2, 72);
  const Rows<float> queries = test::random_queries(random, shape, 20, 3);
  std::vector<float> slopes(6, 0.03f);
  std::vector<float> sinks(6, 1.0f);
  std::vector<std::uint64_t> tree;
  for (int i = 0; i < 20; ++i) tree.push_back(random.next() & detail::tree_bits(20));
  AttendOptions options = test::exact_options();
  options.soft_cap = 20.0f;
  options.window = 60;
  options.alibi_slopes = slopes;
  options.sink_logits = sinks;
  options.tree_mask = tree;
  test::Output chunk(20, 6, 72);
  std::vector<std::byte> workspace(attend_prefill_workspace_bytes(filled.view(), 20));
  KVTILT_EXPECT_OK(attend_prefill(filled.view(), queries.view(), keys.view(), values.view(),
                                  chunk.view(), options, workspace));
  options.tree_tokens = 50;  // 30 of them cached before
  test::Output last_level(20, 6, 72);
  KVTILT_EXPECT_OK(attend_prefill(filled.view(), queries.view(), keys.view(), values.view(),
                                  last_level.view(), options, workspace));
  KVTILT_EXPECT_OK(filled.cache.append(filled.id, 0, keys.view(), values.view()));
  EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options, last_level));
  options.tree_tokens = 0;
  EXPECT_TRUE(test::follows_oracle(filled.view(), queries, options, chunk));
}

}  // namespace
}  // namespace kvtilt
