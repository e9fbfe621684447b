// SPDX-License-Identifier: MIT
#include <kvtilt/plan/group_plan.hpp>
#include <kvtilt/plan/measure_error.hpp>
#include <kvtilt/plan/norm_losses.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

const FormatChoices norm_choices{{key_format(4), key_format(2)}, {value_format(4), Format{}}};

LayerNorms norms_of(double keys, double values) {
  LayerNorms layer;
  layer.keys.frobenius = keys;
  layer.keys.spectral = keys / 2;
  layer.values.frobenius = values;
  layer.values.spectral = values / 2;
  return layer;
}

TEST(NormLosses, AreTheSquaredNormTimesTheLaw) {
  const CacheShape shape = CacheShape::uniform(2, 2, 128);
  const std::vector<LayerNorms> norms{norms_of(10, 2), norms_of(6, 4)};
  const auto losses = losses_from_norms(shape, 64, norm_choices, norms, Norm::Frobenius);
  ASSERT_TRUE(losses.ok()) << losses.message();
  ASSERT_TRUE(check_losses(*losses, shape, norm_choices).ok());
  ASSERT_EQ(losses->layers[1].size(), 1u);
  const double d4 = relative_error({4, Granularity::PerChannel, 64, RangeRule::MinMse});
  EXPECT_DOUBLE_EQ(losses->layers[0][0].keys[0], 100 * d4);
  EXPECT_DOUBLE_EQ(losses->layers[1][0].keys[0], 36 * d4);
  EXPECT_DOUBLE_EQ(losses->layers[1][0].values[0],
                   16 * relative_error({4, Granularity::PerToken, 128, RangeRule::MinMse}));
  EXPECT_DOUBLE_EQ(losses->layers[1][0].values[1], 16 * relative_error(Format{}));
  const auto spectral = losses_from_norms(shape, 64, norm_choices, norms, Norm::Spectral);
  EXPECT_DOUBLE_EQ(spectral->layers[0][0].keys[0], 25 * d4);
}

TEST(NormLosses, OfHeads) {
  const CacheShape shape = CacheShape::uniform(1, 2, 128);
  LayerNorms layer = norms_of(10, 2);
  layer.keys.head_frobenius = {8, 6};
  layer.values.head_frobenius = {1, 1.5};
  const auto losses = losses_from_norms(shape, 64, norm_choices, std::vector{layer},
                                        Norm::Frobenius, RecipePer::Head);
  ASSERT_TRUE(losses.ok()) << losses.message();
  const auto& heads = losses->layers[0];
  ASSERT_EQ(heads.size(), 2u);
  EXPECT_DOUBLE_EQ(heads[0].keys[0] / heads[1].keys[0], 64.0 / 36);
  EXPECT_DOUBLE_EQ(heads[0].values[0] / heads[1].values[0], 1 / 2.25);
  const auto missing = losses_from_norms(shape, 64, norm_choices, std::vector{layer},
                                         Norm::Spectral, RecipePer::Head);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("spectral norms of 0 heads for 2"));
}

// Where keys are normalized after the projection (Qwen3), the weights do not determine their size.
TEST(NormLosses, GainsOfTheKeyNormSetTheScale) {
  const CacheShape shape = CacheShape::uniform(1, 2, 8);
  LayerNorms layer = norms_of(1000, 2);
  layer.key_gains = {1, 2, 0, 0, -2, 0, 0, 0};
  const auto unused =
      losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius);
  layer.key_norm = true;
  const auto losses =
      losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius);
  ASSERT_TRUE(losses.ok()) << losses.message();
  const double d4 = relative_error({4, Granularity::PerChannel, 64, RangeRule::MinMse});
  EXPECT_DOUBLE_EQ(unused->layers[0][0].keys[0], 1e6 * d4);
  EXPECT_DOUBLE_EQ(losses->layers[0][0].keys[0], 2 * 9 * d4) << "two heads of squared size 9";
  const auto heads = losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius,
                                       RecipePer::Head);
  EXPECT_FALSE(heads.ok()) << "values still need norms per head";

  layer.key_gains.resize(16, 3.0f);  // one gain per head and channel
  const auto own = losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius);
  EXPECT_DOUBLE_EQ(own->layers[0][0].keys[0], (9 + 8 * 9) * d4);
  layer.key_gains.clear();
  const auto weights =
      losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius);
  EXPECT_DOUBLE_EQ(weights->layers[0][0].keys[0], 1e6 * d4) << "without gains, the weights";
}

std::vector<float> normal_weights(test::Random& random, int count, double deviation) {
  std::vector<float> data(static_cast<std::size_t>(count));
  for (float& x : data) x = static_cast<float>(deviation * random.normal());
  return data;
}

// Keys with a bias far above what the weights add, as in Qwen2: per token it is most of each
// group's range, per channel it is the minimum.
TEST(NormLossesAgreement, ABiasCostsWhatItCostsTheQuantizer) {
  const int heads = 2;
  const int dim = 64;
  const int hidden = 64;
  const int tokens = 256;
  test::Random random(61);
  const auto weights = normal_weights(random, heads * dim * hidden, 1.0 / 8);
  auto bias = normal_weights(random, heads * dim, 20);
  for (int i = 0; i < dim; ++i) bias[static_cast<std::size_t>(i)] /= 10;  // the first head's
  const auto inputs = normal_weights(random, tokens * hidden, 1);
  std::vector<float> keys;
  for (int token = 0; token < tokens; ++token)
    for (int row = 0; row < heads * dim; ++row) {
      float& key = keys.emplace_back(bias[static_cast<std::size_t>(row)]);
      for (int i = 0; i < hidden; ++i)
        key += weights[static_cast<std::size_t>(row * hidden + i)] *
               inputs[static_cast<std::size_t>(token * hidden + i)];
    }
  LayerNorms layer;
  layer.keys = *weight_norms({weights.data(), heads * dim, hidden}, heads, bias);
  layer.values = *weight_norms({weights.data(), heads * dim, hidden}, heads);

  const CacheShape shape = CacheShape::uniform(1, heads, dim);
  const int widths[] = {1, 2, 3, 4, 6, 16};
  const auto choices = format_choices(shape, 64, widths, widths);
  ASSERT_TRUE(choices.ok());
  const auto whole = losses_from_norms(shape, 64, *choices, std::vector{layer}, Norm::Frobenius);
  const auto split =
      losses_from_norms(shape, 64, *choices, std::vector{layer}, Norm::Frobenius, RecipePer::Head);
  ASSERT_TRUE(whole.ok() && split.ok()) << whole.message() << split.message();
  const TensorView view(keys.data(), tokens, heads, dim);
  for (std::size_t i = 0; i < choices->keys.size(); ++i) {
    const Format format = *resolve_format(choices->keys[i], "keys", dim, 64);
    double sum = 0;
    for (int head = 0; head < heads; ++head) {
      const double error = *measure_error(view, head, format, 64) / tokens;
      const double loss = split->layers[0][static_cast<std::size_t>(head)].keys[i];
      EXPECT_LT(std::abs(std::log2(loss / error)), 1)
          << format.bits << (format.granularity == Granularity::PerChannel ? "c" : "t")
          << format.group << ", head " << head;
      sum += error;
    }
    const double loss = whole->layers[0][0].keys[i];
    EXPECT_LT(std::abs(std::log2(loss / sum)), 1)
        << format.bits << (format.granularity == Granularity::PerChannel ? "c" : "t")
        << format.group;
  }
}

TEST(NormLosses, ABiasCountsPerTokenInTheUnitsOfTheNorm) {
  const CacheShape shape = CacheShape::uniform(1, 2, 8);
  const FormatChoices choices{
      {key_format(4), key_format(4, Granularity::PerToken), {half_bits, Granularity::PerChannel}},
      {value_format(4)}};
  LayerNorms layer = norms_of(10, 2);
  layer.keys.bias = 6;
  layer.keys.head_frobenius = layer.values.head_frobenius = {8, 6};
  const auto scale = [&](Norm norm, std::size_t key, RecipePer per = RecipePer::Layer) {
    const auto losses = losses_from_norms(shape, 64, choices, std::vector{layer}, norm, per);
    const Format format = *resolve_format(choices.keys[key], "keys", 8, 64);
    return losses->layers[0][0].keys[key] / relative_error(format);
  };
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 0), 100);
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 1), 100 + 36);
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 2), 100 + 36) << "16 bits have no groups";
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 1, RecipePer::Head), 64 + 18) << "no bias per head";
  layer.keys.head_bias = {2, std::sqrt(32.0)};
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 1, RecipePer::Head), 64 + 4);
  EXPECT_DOUBLE_EQ(scale(Norm::Spectral, 1), 25 + 36) << "inputs of unknown length";
  layer.keys.hidden = 9;
  EXPECT_DOUBLE_EQ(scale(Norm::Spectral, 1), 25 + 4);
  layer.key_norm = true;
  layer.key_gains.assign(8, 1.0f);
  EXPECT_DOUBLE_EQ(scale(Norm::Frobenius, 1), 16) << "QK-norm normalizes the bias away";
}

TEST(NormLosses, TheSpectralNormOfGainsIsTheLongestKey) {
  const std::vector<float> gains{1, -3, 2, 0};
  EXPECT_DOUBLE_EQ(key_gain_norm(gains, 16, Norm::Frobenius), std::sqrt(14.0));
  EXPECT_DOUBLE_EQ(key_gain_norm(gains, 16, Norm::Spectral), 3 * std::sqrt(4.0 / 16));
  EXPECT_DOUBLE_EQ(key_gain_norm(gains, 0, Norm::Spectral), std::sqrt(14.0));
}

TEST(NormLossesHostile, RefusesWhatCannotBeANorm) {
  const CacheShape shape = CacheShape::uniform(1, 2, 8);
  const auto message = [&](const LayerNorms& layer) {
    return std::string(
        losses_from_norms(shape, 64, norm_choices, std::vector{layer}, Norm::Frobenius).message());
  };
  EXPECT_EQ(message(norms_of(1, 1)), "");
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity(), 1e200}) {
    EXPECT_THAT(message(norms_of(bad, 1)), HasSubstr("layer 0, keys: "));
    EXPECT_THAT(message(norms_of(1, bad)), HasSubstr("layer 0, values: "));
  }
  LayerNorms layer = norms_of(1, 1);
  layer.keys.bias = -1;
  EXPECT_THAT(message(layer), HasSubstr("keys: -1 is no norm of a bias"));
  layer.keys.bias = 0;
  layer.keys.head_bias = {1};
  EXPECT_THAT(message(layer), HasSubstr("biases of 1 heads for 2"));
  layer.keys.head_bias = {};
  layer.key_gains = {1, 2, 3};
  EXPECT_THAT(message(layer), HasSubstr("3 gains of the key norm for 2 heads of 8 channels"));
  layer.key_gains.assign(8, std::numeric_limits<float>::infinity());
  EXPECT_THAT(message(layer), HasSubstr("a gain of the key norm is not finite"));
  CacheShape latents = shape;
  latents.layers[0].values_in_keys = true;
  EXPECT_EQ(
      std::string(
          losses_from_norms(latents, 64, norm_choices, std::vector{norms_of(1, 1)}, Norm::Frobenius)
              .message()),
      "layer 0, keys: values are in them: only losses_from_divergence() tells what both lose");
  const auto count = losses_from_norms(shape, 64, norm_choices, {}, Norm::Frobenius);
  EXPECT_THAT(std::string(count.message()), HasSubstr("norms of 0 layers for a shape of 1"));
}

}  // namespace
}  // namespace kvtilt
