// SPDX-License-Identifier: MIT
#include <kvtilt/plan/bit_plan.hpp>
#include <kvtilt/plan/error_law.hpp>
#include <kvtilt/plan/group_plan.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int> groups(const std::vector<Format>& formats, Granularity granularity) {
  std::vector<int> list;
  for (const Format& format : formats)
    if (format.granularity == granularity && format.quantized()) list.push_back(format.group);
  return list;
}

TEST(GroupPlan, WritesOutWhatDividesPageAndHead) {
  const int widths[] = {4};
  const auto wide = format_choices(CacheShape::uniform(2, 2, 128), 128, widths, widths);
  ASSERT_TRUE(wide.ok()) << wide.message();
  for (const std::vector<Format>* list : {&wide->keys, &wide->values}) {
    EXPECT_THAT(groups(*list, Granularity::PerChannel), ElementsAre(32, 64, 128));
    EXPECT_THAT(groups(*list, Granularity::PerToken), ElementsAre(32, 64, 128));
  }
  EXPECT_EQ(wide->keys[0].granularity, Granularity::PerChannel);
  EXPECT_EQ(wide->values[0].granularity, Granularity::PerToken);

  const auto odd = format_choices(CacheShape::uniform(2, 2, 72), 32, widths, widths);
  EXPECT_THAT(groups(odd->keys, Granularity::PerChannel), ElementsAre(32));
  EXPECT_THAT(groups(odd->values, Granularity::PerToken), ElementsAre(32, 64, 72));
  const auto tiny = format_choices(CacheShape::uniform(2, 2, 8), 64, widths, widths, {16});
  EXPECT_THAT(groups(tiny->keys, Granularity::PerChannel), ElementsAre(16, 32, 64));
  EXPECT_THAT(groups(tiny->values, Granularity::PerToken), ElementsAre(8));
}

TEST(GroupPlan, TakesWidthsInOrderAndOneGranularityIfTold) {
  const int keys[] = {8, 16, 1};
  const int values[] = {2};
  const auto choices = format_choices(CacheShape::uniform(1, 1, 64), 32, keys, values, {32, false});
  ASSERT_TRUE(choices.ok());
  ASSERT_EQ(choices->keys.size(), 3u);
  EXPECT_EQ(choices->keys[0], key_format(8, Granularity::PerChannel, 32));
  EXPECT_EQ(choices->keys[1], Format{});
  EXPECT_EQ(choices->keys[2].rule, RangeRule::Centroids);
  EXPECT_EQ(choices->values.size(), 2u);
}

TEST(GroupPlan, EveryChoiceFitsEveryLayer) {
  CacheShape shape;
  for (const int dim : {8, 24, 72, 80, 104, 128, 192, 576}) shape.layers.push_back({1, dim, dim});
  const int widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 16};
  for (const int page_tokens : {32, 64, 128}) {
    const auto choices = format_choices(shape, page_tokens, widths, widths, {16});
    ASSERT_TRUE(choices.ok());
    for (const LayerShape& layer : shape.layers) {
      const auto resolved = resolve_choices(*choices, layer, page_tokens, 0);
      EXPECT_TRUE(resolved.ok()) << resolved.message();
    }
  }
}

// Smaller groups compete with wider codes for the same bytes: with a little more than the large
// group needs, but not enough for another bit, the planner takes a smaller group.
TEST(GroupPlan, PlansSpendBytesOnGroups) {
  const CacheShape shape = CacheShape::uniform(1, 2, 128);
  const int widths[] = {3, 4};
  const auto choices = format_choices(shape, 128, widths, widths, {32, false});
  ASSERT_TRUE(choices.ok());
  HeadLosses entry;
  for (const Format& format : choices->keys) entry.keys.push_back(relative_error(format));
  for (const Format& format : choices->values) entry.values.push_back(relative_error(format));
  const ModelLosses losses{{{entry}}};
  const auto least = plan_bits(shape, 128, *choices, losses, {3.25});
  ASSERT_TRUE(least.ok()) << least.message();
  EXPECT_EQ(least->plan.recipes[0][0].key, key_format(3, Granularity::PerChannel, 128));
  const auto more = plan_bits(shape, 128, *choices, losses, {3.5});
  ASSERT_TRUE(more.ok());
  const Recipe& recipe = more->plan.recipes[0][0];
  EXPECT_EQ(recipe.key.bits + recipe.value.bits, 6);
  EXPECT_LT(recipe.key.group + recipe.value.group, 256);
  EXPECT_LT(more->loss, least->loss);
}

TEST(GroupPlanHostile, RefusesOtherWidthsAndPages) {
  const CacheShape shape = CacheShape::uniform(1, 1, 64);
  const int good[] = {4};
  const int bad[] = {4, 9};
  EXPECT_THAT(std::string(format_choices(shape, 64, good, bad).message()),
              HasSubstr("values: 9 bits"));
  EXPECT_THAT(std::string(format_choices(shape, 60, good, good).message()),
              HasSubstr("page_tokens is 60"));
  EXPECT_FALSE(format_choices({}, 64, good, good).ok());
}

}  // namespace
}  // namespace kvtilt
