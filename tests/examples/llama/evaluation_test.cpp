// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/isa.hpp>

#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/evaluation.hpp>
#include <llama/float_cache.hpp>
#include <llama/kvtilt_cache.hpp>
#include <llama/metrics.hpp>
#include <llama/pieces.hpp>
#include <llama/text_file.hpp>

#include <array>
#include <cmath>

namespace llama {
namespace {

using testing::HasSubstr;

/// The first pieces of the shipped stories.
std::vector<std::vector<int>> first_stories(const Model& model, long predictions) {
  const auto tokenizer = load_tokenizer(data_folder("models/stories260K"), model.config());
  auto pieces = cut_pieces(read_text_file(data_folder("text/tinystories_317.txt")), *tokenizer,
                           model.config().context);
  limit_predictions(pieces, predictions);
  return pieces;
}

TEST(Evaluation, AgreesWithALoopWrittenOut) {
  const Model model(data_folder("models/stories260K"));
  const auto pieces = first_stories(model, 700);
  const std::vector<std::string> recipes{"k16v16", "k2v2"};
  const auto reports = evaluate(model, pieces, {recipes, {32, 32, 4}, 1, {}});
  ASSERT_EQ(reports.size(), 3U);

  const auto baseline = make_cache(model.config(), "f16", {});
  const auto cache = make_cache(model.config(), "k2v2", {32, 32, 4});
  Scratch scratch;
  std::vector<float> p(512);
  std::vector<float> q(512);
  double nll = 0;
  double kld = 0;
  double kld_max = 0;
  std::vector<std::array<double, 3>> piece_means;  // predictions, divergence, same top-1
  double tokens = 0;
  double bits = 0;
  int count = 0;
  int same = 0;
  int quantized = 0;
  for (const auto& piece : pieces) {
    const double kld_before = kld;
    const int same_before = same;
    baseline->restart(512);
    cache->restart(512);
    for (std::size_t i = 0; i + 1 < piece.size(); ++i) {
      model.forward({&piece[i], 1}, *baseline, scratch, p);
      model.forward({&piece[i], 1}, *cache, scratch, q);
      double sum_p = 0;
      double sum_q = 0;
      for (std::size_t t = 0; t < 512; ++t) {
        sum_p += std::exp(static_cast<double>(p[t]));
        sum_q += std::exp(static_cast<double>(q[t]));
      }
      double divergence = 0;
      for (std::size_t t = 0; t < 512; ++t) {
        const double log_p = p[t] - std::log(sum_p);
        const double log_q = q[t] - std::log(sum_q);
        divergence += std::exp(log_p) * (log_p - log_q);
      }
      nll += std::log(sum_q) - q[static_cast<std::size_t>(piece[i + 1])];
      kld += divergence;
      kld_max = std::max(kld_max, divergence);
      same += argmax(p) == argmax(q);
      quantized += cache->touched_codes();
      ++count;
    }
    const auto predictions = static_cast<double>(piece.size() - 1);
    piece_means.push_back(
        {predictions, (kld - kld_before) / predictions, (same - same_before) / predictions});
    bits += cache->usage().effective_bits * cache->length();
    tokens += cache->length();
  }
  const RecipeReport& report = reports[2];
  EXPECT_EQ(report.recipe, "k2v2");
  EXPECT_EQ(count, 700);
  EXPECT_NEAR(report.nll, nll / count, 1e-6);
  EXPECT_NEAR(report.kld_mean, kld / count, 1e-6);
  EXPECT_NEAR(report.kld_max, kld_max, 1e-4);
  EXPECT_NEAR(report.top1, 100.0 * same / count, 1e-9);
  // A mean is the sum of the pieces' means, weighted by their share of the predictions.
  double kld_squares = 0;
  double same_squares = 0;
  for (const auto& [predictions, divergence, same_top] : piece_means) {
    kld_squares += std::pow(predictions / count * (divergence - kld / count), 2);
    same_squares += std::pow(predictions / count * (same_top - 1.0 * same / count), 2);
  }
  ASSERT_EQ(piece_means.size(), 3U);
  EXPECT_NEAR(report.kld_mean_error.value(), std::sqrt(3.0 / 2 * kld_squares), 1e-6);
  EXPECT_NEAR(report.top1_error.value(), 100 * std::sqrt(3.0 / 2 * same_squares), 1e-9);
  EXPECT_NEAR(report.quantized_share, static_cast<double>(quantized) / count, 1e-12);
  EXPECT_NEAR(report.effective_bits, bits / tokens, 1e-9);
  EXPECT_GT(report.tokens_per_s, 0);
  EXPECT_LE(report.kld_mean, report.kld_p99);
  EXPECT_LE(report.kld_p99, report.kld_max);

  EXPECT_EQ(reports[0].recipe, "f16");
  EXPECT_EQ(reports[0].kld_max, 0);
  EXPECT_EQ(reports[0].top1, 100);
  EXPECT_EQ(reports[0].kld_mean_error, 0);
  EXPECT_LE(reports[1].kld_mean, 1e-6);
  EXPECT_EQ(reports[1].quantized_share, 0);
}

TEST(Evaluation, GivesTheSameFiguresForAnyNumberOfThreads) {
  const Model model(data_folder("models/stories260K"));
  const auto pieces = first_stories(model, 1500);
  double last_share = 0;
  const auto progress = [&](double share) { last_share = share; };
  const auto one = evaluate(model, pieces, {{"k4v2"}, {32, 32, 4}, 1, progress});
  EXPECT_EQ(last_share, 1);
  const auto three = evaluate(model, pieces, {{"k4v2"}, {32, 32, 4}, 3, progress});
  EXPECT_EQ(last_share, 1);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].nll, three[i].nll);
    EXPECT_EQ(one[i].kld_mean, three[i].kld_mean);
    EXPECT_EQ(one[i].kld_p99, three[i].kld_p99);
    EXPECT_EQ(one[i].kld_max, three[i].kld_max);
    EXPECT_EQ(one[i].top1, three[i].top1);
    EXPECT_EQ(one[i].kld_mean_error, three[i].kld_mean_error);
    EXPECT_EQ(one[i].cache_bytes, three[i].cache_bytes);
    EXPECT_EQ(one[i].effective_bits, three[i].effective_bits);
  }
}

TEST(Evaluation, APlanThatIsOneRecipeHasTheFiguresOfTheRecipe) {
  const Model model(data_folder("models/stories260K"));
  const auto pieces = first_stories(model, 1200);
  EvaluationOptions options;
  options.recipes = {"k3v2"};
  options.cache = {32, 0, 0};
  const auto shape = cache_shape(model.config());
  options.plans = {{"plan", kvtilt::Plan::uniform(shape, kvtilt::parse_recipe("k3v2").value())},
                   {"wider", kvtilt::Plan::uniform(shape, kvtilt::parse_recipe("k8v8").value())}};
  const auto reports = evaluate(model, pieces, options);
  ASSERT_EQ(reports.size(), 4U);
  EXPECT_EQ(reports[2].recipe, "plan");
  EXPECT_FALSE(reports[1].is_plan);
  EXPECT_TRUE(reports[2].is_plan);
  EXPECT_EQ(reports[2].kld_mean, reports[1].kld_mean);
  EXPECT_EQ(reports[2].cache_bytes, reports[1].cache_bytes);
  EXPECT_EQ(reports[3].recipe, "wider");
  EXPECT_LT(reports[3].kld_mean, 0.1 * reports[1].kld_mean);
}

TEST(Evaluation, ChunksReadTheSamePages) {
  const Model model(data_folder("models/stories260K"));
  const auto pieces = first_stories(model, 1200);
  EvaluationOptions options;
  options.recipes = {"k2v2", "k4v4"};
  options.cache = {32, 0, 0};
  const auto single = evaluate(model, pieces, options);
  for (const int chunk : {16, 64}) {
    options.chunk = chunk;
    const auto chunked = evaluate(model, pieces, options);
    for (std::size_t i = 0; i < single.size(); ++i) {
      // Chunks of up to 16 tokens add in the same order. Longer ones round differently, so a few
      // codes and the predictions that depend on them change.
      const double allowed = chunk == 16 ? 0 : 0.1;
      EXPECT_NEAR(chunked[i].kld_mean, single[i].kld_mean, allowed * single[i].kld_mean);
      EXPECT_NEAR(chunked[i].nll, single[i].nll, allowed * 2e-2);
      EXPECT_EQ(chunked[i].cache_bytes, single[i].cache_bytes);
      EXPECT_NEAR(chunked[i].quantized_share, single[i].quantized_share, 1e-12);
    }
  }
}

/// Rounding queries and probabilities adds no visible error to that of rounding keys and values.
TEST(Evaluation, FindsFastArithmeticAsGoodAsExact) {
  const Model model(data_folder("models/stories260K"));
  const auto pieces = first_stories(model, 5000);
  const std::vector<std::string> recipes{"k8v8", "k5v5", "k4v4", "k4v2", "k2v2"};
  CacheSettings settings{32, 32, 4};
  const auto fast = evaluate(model, pieces, {recipes, settings, 2, {}});
  settings.arithmetic = CacheArithmetic::Exact;
  const auto exact = evaluate(model, pieces, {recipes, settings, 2, {}});
  for (std::size_t i = 1; i < exact.size(); ++i) {
    EXPECT_NEAR(fast[i].kld_mean, exact[i].kld_mean, std::max(1e-5, 0.05 * exact[i].kld_mean))
        << exact[i].recipe;
  }
  // Scalar kernels have no integer dot products; with all others the two must differ.
  EXPECT_EQ(fast[4].kld_mean == exact[4].kld_mean,
            kvtilt::active_isa().value() == kvtilt::Isa::Scalar);
}

TEST(Evaluation, OnePieceHasNoStandardError) {
  const Model model(data_folder("models/stories260K"));
  const auto reports = evaluate(model, first_stories(model, 100), {{"k2v2"}, {32, 0, 0}, 1, {}});
  EXPECT_GT(reports[1].kld_mean, 0);
  EXPECT_EQ(reports[1].kld_mean_error, std::nullopt);
  EXPECT_EQ(reports[1].top1_error, std::nullopt);
}

TEST(EvaluationGolden, TheBaselineHasTheKnownPerplexityOnTheFirstStories) {
  const Model model(data_folder("models/stories260K"));
  const auto reports = evaluate(model, first_stories(model, 60188), {{}, {}, 2, {}});
  EXPECT_NEAR(std::exp(reports.at(0).nll), 4.338, 0.002);
}

TEST(EvaluationHostile, ErrorsOfAWorkerReachTheCaller) {
  const Model model(data_folder("models/stories260K"));
  EXPECT_THAT(error_of([&] {
                (void)evaluate(model, {}, {{}, {}, 2, {}});
              }),
              HasSubstr("nothing to predict"));
  EXPECT_THAT(error_of([&] {
                (void)evaluate(model, {{1, 5}}, {{"k99v1"}, {}, 2, {}});
              }),
              HasSubstr("k99v1"));
  EXPECT_THAT(error_of([&] {
                (void)evaluate(model, {{1, 5}, {1, 600, 5}}, {{}, {}, 2, {}});
              }),
              HasSubstr("token 600"));
}

}  // namespace
}  // namespace llama
