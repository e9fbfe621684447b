// SPDX-License-Identifier: MIT
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/evaluation_report.hpp>

#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

/// A report on pieces of 1000 predictions each, with these sums of divergences.
RecipeReport recipe_report(const std::string& recipe, double page_bits,
                           std::vector<double> kld_sums) {
  RecipeReport result;
  result.recipe = recipe;
  result.page_bits = page_bits;
  const double predictions = 1000 * static_cast<double>(kld_sums.size());
  for (const double sum : kld_sums) result.kld_mean += sum / predictions;
  result.kld_sums = std::move(kld_sums);
  return result;
}

RecipeReport plan_report(const std::string& name, double page_bits, std::vector<double> kld_sums) {
  RecipeReport result = recipe_report(name, page_bits, std::move(kld_sums));
  result.is_plan = true;
  return result;
}

const RecipeReport f16_report = recipe_report("f16", 16, {0, 0, 0});

TEST(EvaluationReport, PrintsStandardErrors) {
  RecipeReport row = recipe_report("k4v2", 3.5, {0.1, 0.2, 0.156});
  row.kld_mean_error = 1.12e-5;
  row.top1 = 99.621;
  row.top1_error = 0.047;
  const std::string text = evaluation_text({f16_report, row}, true);
  EXPECT_THAT(text, HasSubstr("  1.52e-04 +- 0.11e-04  "));
  EXPECT_THAT(text, HasSubstr("  99.62 +- 0.05  "));
  EXPECT_THAT(text, Not(HasSubstr("kld ratio")));
  const auto json = evaluation_json({f16_report, row})[1];
  EXPECT_EQ(json["kld_mean_error"], 1.12e-5);
  EXPECT_EQ(json["top1_error"], 0.047);
  EXPECT_FALSE(json.contains("best_named"));
}

TEST(EvaluationReport, OnePieceHasNoStandardError) {
  RecipeReport row = recipe_report("k4v2", 3.5, {0.152});
  row.top1 = 99;
  EXPECT_THAT(evaluation_text({row}, true), HasSubstr("  1.52e-04 +- -  "));
  EXPECT_THAT(evaluation_text({row}, true), HasSubstr("  99.00 +- -  "));
  EXPECT_TRUE(evaluation_json({row})[0]["kld_mean_error"].is_null());
  EXPECT_TRUE(evaluation_json({row})[0]["top1_error"].is_null());
}

/// Recipes with more page bits, plans and the baseline are not compared with.
TEST(EvaluationReport, ComparesPlansWithTheBestRecipeOfTheirSize) {
  const std::vector<RecipeReport> reports{f16_report,
                                          recipe_report("k3v3", 3.5, {0.4, 0.8, 0.8}),
                                          recipe_report("k3v3c", 3.5, {0.5, 0.8, 0.8}),
                                          recipe_report("3c:min-max/3t", 3.504, {0.3, 0.8, 0.6}),
                                          recipe_report("k4v3", 4, {0.1, 0.1, 0.1}),
                                          plan_report("plan:a", 3.5, {0.2, 0.4, 0.4}),
                                          plan_report("plan:b", 3.5, {0.4, 0.4, 0.4}),
                                          plan_report("plan:c", 2, {1, 2, 3}),
                                          plan_report("plan:d", 16, {0.1, 0.1, 0.2})};
  // By hand, for plan:b over k3v3: r = 0.6, residuals 0.16, -0.08, -0.08, sqrt(3/2 * 0.0384) / 2.
  EXPECT_THAT(evaluation_text(reports, true),
              EndsWith("\n\n"
                       "        best named recipe     kld ratio    best recipe     kld ratio\n"
                       "plan:a               k3v3  0.50 +- 0.00  3c:min-max/3t  0.59 +- 0.06\n"
                       "plan:b               k3v3  0.60 +- 0.12  3c:min-max/3t  0.71 +- 0.18\n"
                       "plan:c                  -             -              -             -\n"
                       "plan:d               k4v3  1.33 +- 0.33           k4v3  1.33 +- 0.33\n"));
  const auto json = evaluation_json(reports);
  EXPECT_EQ(json[6]["best_named"]["recipe"], "k3v3");
  EXPECT_NEAR(json[6]["best_named"]["kld_ratio"], 0.6, 1e-12);
  EXPECT_NEAR(json[6]["best_named"]["kld_ratio_error"], 0.12, 1e-12);
  EXPECT_EQ(json[6]["best_recipe"]["recipe"], "3c:min-max/3t");
  EXPECT_TRUE(json[7]["best_named"].is_null());
}

TEST(EvaluationReport, ARatioOnOnePieceHasNoError) {
  const std::vector<RecipeReport> reports{recipe_report("k3v3", 3.5, {0.4}),
                                          plan_report("plan", 3.5, {0.2})};
  EXPECT_THAT(evaluation_text(reports, true), HasSubstr("\nplan               k3v3  0.50 +- -  "));
  EXPECT_TRUE(evaluation_json(reports)[1]["best_named"]["kld_ratio_error"].is_null());
}

}  // namespace
}  // namespace llama
