// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <llama/metrics.hpp>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace llama {
namespace {

double kl(const std::vector<float>& p, const std::vector<float>& q) {
  return kl_divergence(p, log_sum_exp(p), q, log_sum_exp(q));
}

TEST(Metrics, LogSumExpIsRightAndDoesNotOverflow) {
  EXPECT_NEAR(log_sum_exp(std::vector<float>{0, 0, 0, 0}), std::log(4.0), 1e-15);
  EXPECT_NEAR(log_sum_exp(std::vector<float>{1, 2, 3}), 3.40760596444438, 1e-13);
  EXPECT_NEAR(log_sum_exp(std::vector<float>{3000, 3000}), 3000 + std::log(2.0), 1e-11);
  EXPECT_NEAR(log_sum_exp(std::vector<float>{-3000, -4000}), -3000, 1e-11);
}

TEST(Metrics, LogSumExpShowsBrokenLogits) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (std::size_t place = 0; place < 9; ++place) {
    std::vector<float> logits(9, 1.0F);
    logits[place] = nan;
    EXPECT_FALSE(std::isfinite(log_sum_exp(logits))) << place;
    logits[place] = infinity;
    EXPECT_FALSE(std::isfinite(log_sum_exp(logits))) << place;
  }
}

TEST(Metrics, DivergenceIsThatOfTheDistributions) {
  // p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2).
  const float three = std::log(3.0F);
  EXPECT_NEAR(kl({0, three}, {0, 0}), 0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-7);
  // The other way round: 1/2 ln 2 + 1/2 ln(2/3).
  EXPECT_NEAR(kl({0, 0}, {0, three}), 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3.0), 1e-7);
  // A constant added to all logits changes no distribution.
  EXPECT_NEAR(kl({5, 5 + three}, {-7, -7}), kl({0, three}, {0, 0}), 1e-6);
  EXPECT_EQ(kl({1, 2, 3}, {1, 2, 3}), 0);
}

TEST(Metrics, TinyDivergencesAreNotRounded) {
  // At p = 1/2, logits d apart give KL = d^2 / 8, here 1.2e-13: far below the rounding of a float
  // sum.
  const float d = 0x1p-20F;
  EXPECT_NEAR(kl({0, 0}, {0, d}), static_cast<double>(d) * d / 8, 1e-15);
  EXPECT_GE(kl({0, 0x1p-30F}, {0, 0}), 0);
}

TEST(Metrics, ArgmaxTakesTheFirstOfEquals) {
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(argmax(std::vector<float>{-5}), 0);
}

TEST(Metrics, PercentileIsTheNearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 1.0), 100);
  EXPECT_EQ(percentile(values, 0.0), 1);
  for (const int count : {100, 300, 700, 1100}) {  // products that are rounded up in float
    std::vector<double> numbers;
    for (int i = 1; i <= count; ++i) numbers.push_back(i);
    EXPECT_EQ(percentile(numbers, 0.99), count / 100 * 99);
  }
  EXPECT_EQ(percentile({7.5}, 0.99), 7.5);
  EXPECT_EQ(percentile({}, 0.99), 0);
}

std::optional<double> error_of_ratio(const std::vector<double>& y, const std::vector<double>& x) {
  return ratio_standard_error(y, x);
}

TEST(Metrics, TheErrorOfAMeanTakesPiecesAsUnits) {
  // By hand: r = 9/6, residuals -1/2, 1, -1/2, sqrt(3/2 * 3/2) / 6.
  EXPECT_NEAR(error_of_ratio({1, 4, 4}, {1, 2, 3}).value(), 0.25, 1e-15);
  // Pieces of one length: the sample deviation of their means 1, 2, 6 is sqrt(7), over sqrt(3).
  EXPECT_NEAR(error_of_ratio({4, 8, 24}, {4, 4, 4}).value(), std::sqrt(7.0 / 3), 1e-15);
  // More tokens that repeat the first of their piece tell nothing new.
  EXPECT_NEAR(error_of_ratio({400, 800, 2400}, {400, 400, 400}).value(), std::sqrt(7.0 / 3), 1e-14);
  EXPECT_EQ(error_of_ratio({3, 6, 12}, {1, 2, 4}).value(), 0);
}

TEST(Metrics, TheErrorOfARatioIsPaired) {
  const std::vector<double> y{3, 5, 4, 9};
  const std::vector<double> x{2, 6, 3, 5};
  // The delta method written out: r^2 (var(y)/mean(y)^2 + var(x)/mean(x)^2
  // - 2 cov(y, x)/(mean(y) mean(x))) / 4, with variances of divisor 3.
  const double mean_y = 21.0 / 4;
  const double mean_x = 4;
  const double var_y = (131 - 4 * mean_y * mean_y) / 3;
  const double var_x = (74 - 4 * mean_x * mean_x) / 3;
  const double cov = (93 - 4 * mean_y * mean_x) / 3;
  const double r = mean_y / mean_x;
  const double relative =
      var_y / (mean_y * mean_y) + var_x / (mean_x * mean_x) - 2 * cov / (mean_y * mean_x);
  EXPECT_NEAR(error_of_ratio(y, x).value(), r * std::sqrt(relative / 4), 1e-14);
}

TEST(Metrics, TheErrorOfARatioNeedsTwoPieces) {
  EXPECT_EQ(error_of_ratio({}, {}), std::nullopt);
  EXPECT_EQ(error_of_ratio({3}, {2}), std::nullopt);
  EXPECT_EQ(error_of_ratio({0, 0}, {0, 0}), std::nullopt);
  EXPECT_EQ(error_of_ratio({0, 0}, {2, 3}), 0);
}

}  // namespace
}  // namespace llama
