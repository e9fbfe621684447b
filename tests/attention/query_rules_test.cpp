// SPDX-License-Identifier: MIT
#include <kvtilt/attention/query_rules.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::detail {
namespace {

TEST(RowRuleProperty, TheMaskIsThePredicateOfEverySlot) {
  test::Random random(1);
  for (int round = 0; round < 20000; ++round) {
    RowRule rule{};
    rule.first_position = random.below(200);
    rule.first_sink = random.below(200);
    rule.end_position = random.below(250);
    rule.tree = random.next();
    rule.tree_start = random.chance(2) ? random.below(250) : std::int64_t{1} << 60;
    const std::int64_t start = random.below(220);
    const bool sinks = random.chance(2);
    const unsigned mask = rule.visible(start, sinks);
    for (int lane = 0; lane < line_lanes; ++lane) {
      const std::int64_t p = start + lane;
      bool seen = p >= (sinks ? rule.first_sink : rule.first_position) && p < rule.end_position;
      if (p >= rule.tree_start) {
        const std::int64_t bit = p - rule.tree_start;
        seen = seen && bit < 64 && (rule.tree >> bit & 1) != 0;
      }
      ASSERT_EQ((mask >> lane & 1) != 0, seen) << "slot at " << p;
    }
  }
}

TEST(RowRules, WindowsAndRangesNarrowEachOther) {
  LayerView view;
  view.shape = {1, 64, 64, 100};
  TensorView queries(static_cast<const float*>(nullptr), 4, 2, 64);
  AttendOptions options;
  options.window = 30;
  options.first_position = 480;
  options.end_position = 501;
  const RowRules rules(view, queries, options, 500);
  EXPECT_EQ(rules.row(0, 0).first_position, 480);
  EXPECT_EQ(rules.row(0, 0).end_position, 501);
  EXPECT_EQ(rules.row(3, 1).position, 503);
  EXPECT_EQ(rules.row(3, 1).first_position, 480);
  EXPECT_EQ(rules.row(3, 1).end_position, 501);
  options.first_position = 0;
  EXPECT_EQ(RowRules(view, queries, options, 500).row(3, 0).first_position, 474);
  options.end_position = 503;
  EXPECT_EQ(RowRules(view, queries, options, 500).row(0, 0).end_position, 501);
  options.causal = false;
  EXPECT_EQ(RowRules(view, queries, options, 500).row(0, 0).end_position, 503);
  options.end_position = 600;
  EXPECT_EQ(RowRules(view, queries, options, 500).row(0, 0).end_position, 504);
  options.window = 0;
  EXPECT_EQ(RowRules(view, queries, options, 500).row(3, 0).first_position, 404);
}

TEST(RowRules, SinksInATreeOutliveTheWindow) {
  LayerView view;
  view.shape = {1, 64, 64, 2, true};
  view.sink_tokens = 4;
  const TensorView queries(static_cast<const float*>(nullptr), 6, 1, 64);
  const std::uint64_t mask[] = {0x1, 0x3, 0x7, 0xf, 0x1f, 0x3d};
  AttendOptions options;
  options.tree_mask = mask;
  // The tree starts at position 1: its first three tokens are sinks.
  EXPECT_EQ(RowRules(view, queries, options, 1).row(4, 0).tree, 0x1fu);
  EXPECT_EQ(RowRules(view, queries, options, 1).row(5, 0).tree, 0x35u);
  view.shape.keep_sinks = false;
  EXPECT_EQ(RowRules(view, queries, options, 1).row(5, 0).tree, 0x30u);
}

TEST(CheckKept, RefusesQueriesThatNeedFreedTokens) {
  LayerView view;
  view.shape = {1, 64, 64, 100};
  view.first_kept = 300;
  EXPECT_TRUE(check_kept(view, {}, 399, 400).ok());
  const Status lost = check_kept(view, {}, 398, 400);
  EXPECT_EQ(lost.code(), ErrorCode::InvalidArgument);
  EXPECT_NE(lost.message().find("back to position 299"), std::string_view::npos) << lost.message();
  AttendOptions narrower;
  narrower.window = 50;
  EXPECT_TRUE(check_kept(view, narrower, 398, 400).ok());
  AttendOptions part;
  part.first_position = 300;
  EXPECT_TRUE(check_kept(view, part, 310, 311).ok());
  part = {};
  part.end_position = 299;  // nothing is seen
  EXPECT_TRUE(check_kept(view, part, 398, 400).ok());
  part.end_position = 300;
  EXPECT_FALSE(check_kept(view, part, 398, 400).ok());
  AttendOptions tree;
  tree.tree_tokens = 10;
  EXPECT_TRUE(check_kept(view, tree, 405, 409).ok());
  EXPECT_FALSE(check_kept(view, tree, 405, 408).ok());
}

}  // namespace
}  // namespace kvtilt::detail
