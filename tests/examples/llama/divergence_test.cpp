// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/divergence.hpp>
#include <llama/evaluation.hpp>
#include <llama/kvtilt_cache.hpp>
#include <llama/probes.hpp>

namespace llama {
namespace {

using kvtilt::Plan;
using kvtilt::Role;

class DivergenceTest : public testing::Test {
 protected:
  static constexpr int page = 32;

  Model model_{data_folder("models/stories260K")};
  kvtilt::CacheShape shape_ = cache_shape(model_.config());
  std::vector<std::vector<int>> pieces_ = make_pieces();
  DivergenceOptions options_{{page, 0, 0}, 2, {}};

  /// Pieces of three lengths: shorter than a page, and not a multiple of it.
  static std::vector<std::vector<int>> make_pieces() {
    std::vector<std::vector<int>> pieces;
    for (const int length : {20, 97, 200}) {
      pieces.push_back({1});
      for (int i = 1; i < length; ++i) pieces.back().push_back(3 + (i * i + 7 * i) % 400);
    }
    return pieces;
  }

  static kvtilt::Recipe recipe(const char* name) { return kvtilt::parse_recipe(name).value(); }

  /// The divergences that the command `evaluate` reports for these plans.
  [[nodiscard]] std::vector<double> evaluated(const std::vector<Plan>& plans) const {
    EvaluationOptions options;
    options.cache = options_.cache;
    for (const Plan& plan : plans) options.plans.push_back({"plan", plan});
    std::vector<double> divergences;
    for (const auto& report : evaluate(model_, pieces_, options)) {
      divergences.push_back(report.kld_mean);
    }
    divergences.erase(divergences.begin());
    return divergences;
  }
};

/// The divergence of a plan equals that of a full run, whatever layer it first differs at.
TEST_F(DivergenceTest, IsThatOfAnEvaluation) {
  const Plan base = Plan::uniform(shape_, recipe("k4v4"));
  std::vector<Plan> plans{base, Plan::uniform(shape_, recipe("k2v2"))};
  for (std::size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    plans.push_back(base);
    plans.back().recipes[layer] = {recipe("k1v2")};
  }
  plans.push_back(base);
  plans.back().recipes.back() = std::vector<kvtilt::Recipe>(
      static_cast<std::size_t>(model_.config().kv_heads), recipe("k4v4"));
  plans.back().recipes.back().back() = recipe("k1v4");
  for (const CacheSettings& cache : {CacheSettings{page, 0, 0}, CacheSettings{page, 40, 3}}) {
    options_.cache = cache;
    const Divergences found = measure_divergence(model_, pieces_, base, plans, options_);
    const auto expected = evaluated(plans);
    ASSERT_EQ(found.plans.size(), plans.size());
    EXPECT_EQ(found.base, found.plans[0]);
    for (std::size_t i = 0; i < plans.size(); ++i) {
      EXPECT_NEAR(found.plans[i], expected[i], 0.01 * expected[i])
          << "plan " << i << ", tail " << cache.recent_tokens;
    }
  }
}

TEST_F(DivergenceTest, DoesNotDependOnTheNumberOfThreads) {
  const Plan base = Plan::uniform(shape_, recipe("k16v16"));
  const std::vector<Plan> plans{Plan::uniform(shape_, recipe("k3v2"))};
  double share = 0;
  options_.progress = [&](double now) { share = now; };
  const Divergences two = measure_divergence(model_, pieces_, base, plans, options_);
  EXPECT_EQ(share, 1);
  options_.threads = 1;
  const Divergences one = measure_divergence(model_, pieces_, base, plans, options_);
  EXPECT_EQ(one.plans, two.plans);
  EXPECT_EQ(one.base, two.base);
  EXPECT_LT(one.base, 1e-6);
}

TEST_F(DivergenceTest, ProbesLowerOneTensorAtATime) {
  const kvtilt::FormatChoices formats{{kvtilt::key_format(2)},
                                      {kvtilt::value_format(2), kvtilt::value_format(5)}};
  for (const auto per : {kvtilt::RecipePer::Layer, kvtilt::RecipePer::Head}) {
    const auto probes = measure_probes(model_, pieces_, formats, per, options_);
    const bool heads = per == kvtilt::RecipePer::Head;
    const int entries = model_.config().layers * (heads ? model_.config().kv_heads : 1);
    ASSERT_EQ(probes.size(), static_cast<std::size_t>(3 * entries));
    const kvtilt::Divergence& probe =
        probes[probes.size() - 3];  // keys of the last layer (and head)
    EXPECT_EQ(probe.layer, model_.config().layers - 1);
    EXPECT_EQ(probe.head, heads ? model_.config().kv_heads - 1 : -1);
    EXPECT_EQ(probe.tensor, Role::Keys);
    EXPECT_EQ(probe.format, kvtilt::key_format(2));
    Plan plan = Plan::uniform(shape_, kvtilt::Recipe{});
    plan.recipes.back().resize(static_cast<std::size_t>(heads ? model_.config().kv_heads : 1));
    plan.recipes.back().back().key = kvtilt::key_format(2);
    EXPECT_NEAR(probe.kl, evaluated({plan})[0], 0.01 * probe.kl);
    EXPECT_GT(probes[probes.size() - 2].kl, 5 * probes.back().kl) << "values of 2 and of 5 bits";
  }
}

TEST_F(DivergenceTest, SaysThatThereIsNothingToPredict) {
  const Plan base = Plan::uniform(shape_, recipe("k4v4"));
  EXPECT_THAT(error_of([&] { (void)measure_divergence(model_, {}, base, {}, options_); }),
              testing::HasSubstr("nothing to predict"));
}

}  // namespace
}  // namespace llama
