// SPDX-License-Identifier: MIT
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/presets.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

TEST(Plan, UniformRepeatsOneRecipe) {
  const CacheShape shape = CacheShape::uniform(3, 4, 128);
  const Plan plan = Plan::uniform(shape, presets::k4v2);
  ASSERT_EQ(plan.recipes.size(), 3u);
  for (const auto& layer : plan.recipes) {
    ASSERT_EQ(layer.size(), 1u);
    EXPECT_EQ(layer[0], presets::k4v2);
  }
}

TEST(Plan, ResolvesAgainstEachLayer) {
  CacheShape shape = CacheShape::uniform(2, 4, 128);
  shape.layers[1].value_dim = 72;
  const auto plan = resolve_plan(Plan::uniform(shape, presets::k4v2), shape, 64);
  ASSERT_TRUE(plan.ok()) << plan.message();
  EXPECT_EQ(plan->recipes[0][0].key.group, 64);
  EXPECT_EQ(plan->recipes[0][0].value.group, 128);
  EXPECT_EQ(plan->recipes[1][0].value.group, 72);
}

TEST(Plan, TakesOneRecipePerHead) {
  const CacheShape shape = CacheShape::uniform(1, 3, 64);
  const Plan plan{{{presets::k8v8, presets::k4v2, presets::k16v16}}};
  const auto resolved = resolve_plan(plan, shape, 32);
  ASSERT_TRUE(resolved.ok()) << resolved.message();
  ASSERT_EQ(resolved->recipes[0].size(), 3u);
  EXPECT_EQ(resolved->recipes[0][0].key.group, 32);
  EXPECT_EQ(resolved->recipes[0][1].value.bits, 2);
  EXPECT_EQ(resolved->recipes[0][2], presets::k16v16);
}

TEST(Plan, RecipesOfALayerAreOneForAllHeadsOrOneEach) {
  const LayerShape shape{2, 64, 64};
  const std::vector<Recipe> three(3, presets::k4v2);
  EXPECT_EQ(resolve_recipes(three, shape, 64).message(),
            "3 recipes for 2 kv heads; give one, or one per head");
  EXPECT_EQ(resolve_recipes({presets::k4v2, presets::k8v4}, shape, 64)->size(), 2u);
  EXPECT_FALSE(resolve_recipes({presets::per_channel_keys(9, 2)}, shape, 64).ok());
}

TEST(PlanHostile, RefusesCountsThatDoNotFit) {
  const CacheShape shape = CacheShape::uniform(2, 3, 64);
  EXPECT_FALSE(resolve_plan(Plan{}, shape, 64).ok());
  const auto layers = resolve_plan(Plan{{{presets::k8v8}}}, shape, 64);
  EXPECT_THAT(std::string(layers.message()), HasSubstr("the plan has 1 layers, the shape 2"));
  const auto heads =
      resolve_plan(Plan{{{presets::k8v8}, {presets::k8v8, presets::k8v8}}}, shape, 64);
  EXPECT_EQ(heads.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(heads.message()), HasSubstr("layer 1: 2 recipes for 3 kv heads"));
  EXPECT_FALSE(resolve_plan(Plan{{{presets::k8v8}, {}}}, shape, 64).ok());
}

TEST(PlanHostile, NamesTheLayerOfABadRecipe) {
  const CacheShape shape = CacheShape::uniform(3, 1, 64);
  Plan plan = Plan::uniform(shape, presets::k4v4);
  plan.recipes[2][0].value.bits = 12;
  const auto resolved = resolve_plan(plan, shape, 64);
  EXPECT_EQ(resolved.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(resolved.message()), HasSubstr("layer 2: values: 12 bits"));
}

TEST(Plan, LeavesLayersWithoutCacheAlone) {
  CacheShape shape = CacheShape::uniform(2, 4, 64);
  shape.layers[0] = LayerShape{};
  Recipe nonsense;
  nonsense.key.bits = 99;
  EXPECT_TRUE(resolve_plan(Plan{{{nonsense, nonsense}, {presets::k4v4}}}, shape, 64).ok());
  EXPECT_TRUE(resolve_plan(Plan{{{}, {presets::k4v4}}}, shape, 64).ok());
}

}  // namespace
}  // namespace kvtilt
