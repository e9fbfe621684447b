// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/format_list.hpp>
#include <llama/planning.hpp>
#include <llama/planning_report.hpp>

namespace llama {
namespace {

using testing::HasSubstr;
using testing::Not;

const kvtilt::CacheShape model_shape = kvtilt::CacheShape::uniform(2, 2, 64);
constexpr int model_page = 64;

/// Two layers, keys and values of 2 or 4 bits; the keys of the second layer matter most.
class PlanningTest : public testing::Test {
 protected:
  kvtilt::FormatChoices choices_ =
      parse_formats({"2", "4"}, Variants::Default, model_shape, model_page);
  kvtilt::ModelLosses losses_{{{{{8, 1}, {4, 0.5}}}, {{{80, 10}, {2, 0.25}}}}};
  WeightNorms norms_ = make_norms();

  static WeightNorms make_norms() {
    WeightNorms norms{model_shape, std::vector<kvtilt::LayerNorms>(2)};
    for (std::size_t i = 0; i < 2; ++i) {
      norms.layers[i].keys = {i == 0 ? 2.0 : 1.0, 1, {2, 2}, {1, 1}, 0, 64, {}};
      norms.layers[i].values = {1.5, 0.5, {1, 1}, {1, 1}, 0, 64, {}};
    }
    return norms;
  }
  [[nodiscard]] Planning plan(LossSource source, double budget, int key_floor = 0,
                              int value_floor = 0) const {
    return make_planning(source, model_shape, model_page, choices_, losses_,
                         {budget, key_floor, value_floor}, norms_);
  }
};

TEST_F(PlanningTest, IsComparedWithTheBestUniformRecipeOfItsSize) {
  const Planning planning = plan(LossSource::Measured, 3.0);
  EXPECT_EQ(planning.best.plan.recipes[1][0].key.bits, 4);
  EXPECT_DOUBLE_EQ(planning.best.page_bits, 3.0);
  EXPECT_DOUBLE_EQ(planning.best.loss, 8 + 4 + 10 + 2);
  ASSERT_TRUE(planning.uniform.has_value());
  EXPECT_DOUBLE_EQ(planning.uniform->loss, 94) << "k2v2: nothing wider fits 3 bits";
  EXPECT_DOUBLE_EQ(planning.uniform->page_bits, 2.5);
  const Planning wider = plan(LossSource::Measured, 3.5);
  EXPECT_DOUBLE_EQ(wider.uniform->loss, 17) << "k4v2";
  EXPECT_EQ(wider.uniform->recipe.key.bits, 4);
  EXPECT_EQ(wider.uniform->recipe.value.bits, 2);
}

// The uniform recipe beside the plan obeys the floor too.
TEST_F(PlanningTest, TheBestUniformRecipeKeepsTheFloors) {
  choices_ = parse_formats({"k2", "k4", "v2", "v4"}, Variants::Default, model_shape, model_page);
  losses_ = {{{{{1, 0.5}, {80, 10}}}, {{{1, 0.5}, {80, 10}}}}};
  const Planning free = plan(LossSource::Measured, 3.5);
  ASSERT_TRUE(free.uniform.has_value());
  EXPECT_EQ(free.uniform->recipe.key.bits, 2);
  EXPECT_EQ(free.uniform->recipe.value.bits, 4);
  EXPECT_FALSE(free.floors_cost);
  EXPECT_THAT(planning_text(free), HasSubstr("best uniform: 2c/4t "));
  const Planning floored = plan(LossSource::Measured, 3.5, 4);
  ASSERT_TRUE(floored.uniform.has_value());
  EXPECT_EQ(floored.uniform->recipe.key.bits, 4);
  EXPECT_DOUBLE_EQ(floored.uniform->loss, 161);
  EXPECT_LE(floored.best.loss, floored.uniform->loss);
  EXPECT_THAT(planning_text(floored), HasSubstr("best uniform of keys with 4+ bits: 4c/2t "));
  EXPECT_THAT(planning_text(plan(LossSource::Measured, 4.5, 3)), HasSubstr("best uniform: 4c/4t "))
      << "the floor changes nothing";

  losses_ = {{{{{80, 10}, {1, 0.5}}}, {{{80, 10}, {1, 0.5}}}}};
  const Planning values = plan(LossSource::Measured, 3.5, 0, 4);
  ASSERT_TRUE(values.uniform.has_value());
  EXPECT_EQ(values.uniform->recipe.value.bits, 4);
  EXPECT_LE(values.best.loss, values.uniform->loss);
  EXPECT_THAT(planning_text(values), HasSubstr("best uniform of values with 4+ bits: 2c/4t "));
  EXPECT_THAT(planning_text(plan(LossSource::Measured, 3.5, 2, 4)),
              HasSubstr("best uniform of keys with 2+ and values with 4+ bits: 2c/4t "));
  EXPECT_EQ(planning_json(values)["value_floor"], 4);
}

TEST_F(PlanningTest, WarnsWhereNormsAndMeasurementPart) {
  const Planning measured = plan(LossSource::Measured, 3.5);
  ASSERT_EQ(measured.measured_gaps.size(), 2U);
  EXPECT_NEAR(measured.measured_gaps[1].value(), 2.66, 0.01) << "log2(10 / 0.25) / 2";
  EXPECT_THAT(planning_text(measured),
              AllOf(HasSubstr("layer 1: the norms of W_K and W_V ask for another gap"),
                    HasSubstr("gap measured"), Not(HasSubstr("fewer bits than values"))));
  const Planning norms = plan(LossSource::Frobenius, 3.5);
  EXPECT_THAT(planning_text(norms),
              AllOf(HasSubstr("layer 1: W_V is larger than W_K"), Not(HasSubstr("QK-norm")),
                    Not(HasSubstr("ask for another gap")), Not(HasSubstr("gap measured"))));
  norms_.one_norm = true;
  EXPECT_THAT(planning_text(plan(LossSource::Frobenius, 3.5)),
              HasSubstr("layer 1: W_V is larger than W_K. Where keys pass a QK-norm"));
}

TEST_F(PlanningTest, WarnsOfValuesThatNormsGiveOneBit) {
  choices_ = parse_formats({"k4", "v1", "v2"}, Variants::Default, model_shape, model_page);
  losses_ = {{{{{1}, {0.5, 0.4}}}, {{{1}, {50, 1}}}}};
  EXPECT_THAT(planning_text(plan(LossSource::Frobenius, 3.25)),
              HasSubstr("layer 0: values get 1 bit"));
  EXPECT_THAT(planning_text(plan(LossSource::Measured, 3.25)), Not(HasSubstr("get 1 bit")));
  EXPECT_THAT(planning_text(plan(LossSource::Frobenius, 3.5)), Not(HasSubstr("get 1 bit")));
}

TEST_F(PlanningTest, WarnsOfKeyNormsAndOfKeysWithFewerBits) {
  norms_.layers[0].key_norm = true;
  losses_.layers[0] = {{{1, 0.5}, {80, 1}}};
  const Planning planning = plan(LossSource::Spectral, 3.5);
  EXPECT_THAT(planning_text(planning),
              AllOf(HasSubstr("layer 0: keys get fewer bits than values"),
                    HasSubstr("layer 0: keys pass a norm of their own (QK-norm)")));
}

TEST_F(PlanningTest, NamesTheSmallestBudgetThatWorks) {
  EXPECT_THAT(error_of([&] { (void)plan(LossSource::Spectral, 3.0, 4); }),
              HasSubstr("the smallest that works is 3.5"));
  EXPECT_THAT(error_of([&] { (void)plan(LossSource::Spectral, 3.0, 5); }),
              HasSubstr("at least 5 bits"));
}

TEST_F(PlanningTest, IsWrittenOutInFull) {
  const auto json = planning_json(plan(LossSource::Measured, 3.5));
  EXPECT_EQ(json["source"], "measured");
  EXPECT_EQ(json["budget"], 3.5);
  EXPECT_EQ(json["layers"].size(), 2U);
  EXPECT_EQ(json["layers"][1]["key_bits"], 4);
  EXPECT_EQ(json["layers"][1]["keys"][0], "4c:g64:min-mse");
  EXPECT_EQ(json["layers"][0]["theorem_1"]["frobenius"], true);
  EXPECT_EQ(json["layers"][1]["theorem_1"]["frobenius"], false);
  EXPECT_EQ(json["layers"][0]["w_v"]["frobenius"], 1.5);
  EXPECT_EQ(json["uniform"]["loss"], 17);
  EXPECT_FALSE(json["warnings"].empty());
}

// A published file does not say which norm it holds: neither may the figures made of it.
TEST_F(PlanningTest, ANormOfUnknownKindIsNotNamed) {
  norms_.one_norm = true;
  const auto json = planning_json(plan(LossSource::Spectral, 3.5));
  EXPECT_EQ(json["source"], "norms");
  EXPECT_EQ(json["layers"][0]["w_k"]["norm"], 2);
  EXPECT_EQ(json["layers"][1]["theorem_1"]["norm"], false);
  EXPECT_TRUE(json["layers"][0]["gap"].contains("norm"));
  EXPECT_THAT(json.dump(), AllOf(Not(HasSubstr("spectral")), Not(HasSubstr("frobenius"))));
}

}  // namespace
}  // namespace llama
