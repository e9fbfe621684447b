// SPDX-License-Identifier: MIT
#include <kvtilt/attention/merge.hpp>

#include "support/attend_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::Rows;

TEST(MergeAgreement, PartsOfTheKeysAddUpToTheWhole) {
  Random random(1);
  const LayerShape shape{2, 64, 48, 0};
  KVCache cache = test::make_cache(shape, presets::k8v8);
  const SequenceId id = test::open_reserved(cache, 1000);
  const Rows<float> keys = test::random_rows(random, 1000, 2, 64);
  const Rows<float> values = test::random_rows(random, 1000, 2, 48);
  KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
  const LayerView view = cache.view(id, 0).value();
  const Rows<float> queries = test::random_queries(random, shape, 3, 3);
  const std::vector<float> sinks = {0.5f, 1.0f, -2.0f, 4.0f, 0.0f, 9.0f};
  AttendOptions whole = test::exact_options();
  whole.sink_logits = sinks;
  for (int round = 0; round < 20; ++round) {
    test::Output sum(3, 6, 48);
    bool first = true;
    for (std::int64_t start = 0; start < 1000;) {
      AttendOptions part = test::exact_options();
      part.first_position = start;
      part.end_position = start + random.between(1, 700);  // may end before, inside or after pages
      if (first) part.sink_logits = sinks;                 // only one part counts the sinks
      test::Output output = test::attended(view, queries, part);
      if (first)
        sum = output;
      else
        KVTILT_EXPECT_OK(merge(sum.view(), output.view()));
      first = false;
      start = part.end_position;
    }
    ASSERT_TRUE(test::follows_oracle(view, queries, whole, sum, 4.0));
  }
}

/// Attention to a shared prefix is computed once, for the queries of all sequences that share it.
TEST(MergeAgreement, ASharedPrefixAndWhatEachHasOfItsOwnAddUpToTheWhole) {
  Random random(3);
  const LayerShape shape{2, 64, 64, 0};
  // 16 bits: a child that appends seals the prefix's tail, its parent does not.
  KVCache cache = test::make_cache(shape, presets::k16v16);
  constexpr int children = 70;  // more than a tree mask has bits
  for (const std::int64_t prefix : {500, 24, 0}) {
    const SequenceId parent = test::open_reserved(cache, prefix);
    const auto append = [&](SequenceId id, std::int64_t tokens) {
      const Rows<float> keys = test::random_rows(random, tokens, 2, 64);
      const Rows<float> values = test::random_rows(random, tokens, 2, 64);
      KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    };
    append(parent, prefix);
    const Rows<float> queries = test::random_queries(random, shape, children, 3);
    AttendOptions shared = test::exact_options();
    shared.causal = false;
    shared.end_position = prefix;
    test::Output sum = test::attended(cache.view(parent, 0).value(), queries, shared);
    AttendOptions own = test::exact_options();
    own.first_position = prefix;
    for (int child = 0; child < children; ++child) {
      const SequenceId id = cache.fork(parent, prefix + 300).value();
      append(id, random.between(1, 300));
      const LayerView view = cache.view(id, 0).value();
      Rows<float> query(1, 6, 64);
      std::copy_n(&queries.at(child, 0, 0), query.data.size(), query.data.begin());
      test::Output whole = test::attended(view, query, own);
      const OutputView part(&sum.out.at(child, 0, 0), 1, 6, 64, &sum.lse[child * std::size_t{6}]);
      KVTILT_EXPECT_OK(merge(whole.view(), part));
      ASSERT_TRUE(test::follows_oracle(view, query, test::exact_options(), whole, 4.0)) << child;
      KVTILT_EXPECT_OK(cache.close(id));
    }
  }
}

/// RoPE by `positions` of one head of 64 channels.
void turn(float* head, std::int64_t positions) {
  for (int c = 0; c < 32; ++c) {
    const double angle = static_cast<double>(positions) * std::pow(10000.0, -c / 32.0);
    const double x = static_cast<double>(head[c]);
    const double y = static_cast<double>(head[c + 32]);
    head[c] = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
    head[c + 32] = static_cast<float>(y * std::cos(angle) + x * std::sin(angle));
  }
}

/// Pages are removed, and later tokens move up into the gap: as if their keys had been turned back by as
/// many positions. No stored key changes; instead the tokens before the gap are asked by queries that
/// are turned back.
TEST(MergeAgreement, AContextIsShiftedByTurningQueries) {
  Random random(4);
  const LayerShape shape{2, 64, 64, 0};
  for (const Recipe& recipe : {presets::k16v16, presets::k4v2})
    for (const std::int64_t kept : {4, 68}) {  // sinks alone, or a page, too
      KVCache cache = test::make_cache(shape, recipe);
      const SequenceId id = test::open_reserved(cache, 700);
      Rows<float> keys = test::random_rows(random, 700, 2, 64);
      for (std::int64_t token = 0; token < 700; ++token)
        for (int head = 0; head < 2; ++head) turn(&keys.at(token, head, 0), token);
      KVTILT_EXPECT_OK(
          cache.append(id, 0, keys.view(), test::random_rows(random, 700, 2, 64).view()));
      constexpr std::int64_t removed = 192;
      KVTILT_EXPECT_OK(cache.remove(id, kept, kept + removed));

      const LayerView view = cache.view(id, 0).value();
      Rows<float> queries = test::random_queries(random, shape, 1, 3);
      for (int head = 0; head < 6; ++head) turn(&queries.at(0, head, 0), 699);
      Rows<float> back = queries;
      for (int head = 0; head < 6; ++head) turn(&back.at(0, head, 0), -removed);
      AttendOptions options = test::exact_options();
      options.first_position = kept;
      test::Output sum = test::attended(view, queries, options);
      options.first_position = 0;
      options.end_position = kept;
      KVTILT_EXPECT_OK(merge(sum.view(), test::attended(view, back, options).view()));

      for (int head = 0; head < 6; ++head) {
        test::LiveHead live(view, head / 3);
        for (std::size_t i = 0; i < live.tokens.size(); ++i)
          if (live.tokens[i].position >= kept) {
            live.tokens[i].position -= removed;
            turn(live.keys.data() + i * 64, -removed);
          }
        const test::OracleRow row =
            test::oracle_row(test::exact_options(), shape, {699 - removed, 699 - removed, 0, head},
                             &back.at(0, head, 0), live.tokens);
        EXPECT_TRUE(test::keeps_bound(row, &sum.out.at(0, head, 0),
                                      sum.lse[static_cast<std::size_t>(head)], 4.0));
      }
    }
}

TEST(Merge, AnEmptyPartIsNeutralOnEitherSide) {
  std::vector<float> a = {1.0f, 2.0f};
  std::vector<float> b = {0.0f, 0.0f};
  std::vector<float> a_lse = {0.25f};
  std::vector<float> b_lse = {bit_cast<float>(minus_infinity_bits)};
  const OutputView full(a.data(), 1, 1, 2, a_lse.data());
  const OutputView empty(b.data(), 1, 1, 2, b_lse.data());
  KVTILT_EXPECT_OK(merge(full, empty));
  EXPECT_EQ(a, (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(a_lse[0], 0.25f);
  KVTILT_EXPECT_OK(merge(empty, full));
  EXPECT_EQ(b, a);
  EXPECT_EQ(b_lse, a_lse);
}

TEST(MergeProperty, IsCommutativeUpToRounding) {
  Random random(2);
  for (int round = 0; round < 1000; ++round) {
    std::vector<float> x(8), y(8), lse = {static_cast<float>(random.normal() * 20)},
                                   other = {static_cast<float>(random.normal() * 20)};
    for (float& v : x) v = static_cast<float>(random.normal());
    for (float& v : y) v = static_cast<float>(random.normal());
    auto x2 = x, y2 = y, lse2 = lse, other2 = other;
    KVTILT_EXPECT_OK(merge(OutputView(x.data(), 1, 1, 8, lse.data()),
                           OutputView(y.data(), 1, 1, 8, other.data())));
    KVTILT_EXPECT_OK(merge(OutputView(y2.data(), 1, 1, 8, other2.data()),
                           OutputView(x2.data(), 1, 1, 8, lse2.data())));
    ASSERT_NEAR(lse[0], other2[0], 1e-5f);
    for (std::size_t i = 0; i < 8; ++i) ASSERT_NEAR(x[i], y2[i], 1e-6f);
  }
}

TEST(MergeProperty, IsAssociativeUpToRounding) {
  Random random(3);
  for (int round = 0; round < 1000; ++round) {
    std::vector<test::Output> parts(3, test::Output(1, 1, 8));
    for (test::Output& part : parts) {
      for (float& x : part.out.data) x = static_cast<float>(random.normal());
      part.lse[0] = random.chance(5) ? bit_cast<float>(minus_infinity_bits)
                                     : static_cast<float>(random.normal() * 5);
      if (test::is_minus_infinity(part.lse[0])) part.out = Rows<float>(1, 1, 8);
    }
    std::vector<test::Output> left = parts;
    KVTILT_EXPECT_OK(merge(left[0].view(), left[1].view()));
    KVTILT_EXPECT_OK(merge(left[0].view(), left[2].view()));
    KVTILT_EXPECT_OK(merge(parts[1].view(), parts[2].view()));
    KVTILT_EXPECT_OK(merge(parts[0].view(), parts[1].view()));
    if (test::is_minus_infinity(left[0].lse[0])) {
      ASSERT_TRUE(test::is_minus_infinity(parts[0].lse[0]));
    } else {
      ASSERT_NEAR(left[0].lse[0], parts[0].lse[0], 1e-5f);
    }
    for (std::size_t i = 0; i < 8; ++i)
      ASSERT_NEAR(left[0].out.data[i], parts[0].out.data[i], 2e-6f);
  }
}

TEST(MergeHostile, ShapesAndMissingLseAreRefused) {
  std::vector<float> data(64, 7.0f);
  std::vector<float> lse(8);
  const OutputView a(data.data(), 1, 2, 8, lse.data());
  const OutputView b(data.data(), 1, 2, 16, lse.data());
  EXPECT_EQ(merge(a, b).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(merge(a, OutputView(data.data(), 1, 2, 8)).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(data[0], 7.0f);
}

}  // namespace
}  // namespace kvtilt
