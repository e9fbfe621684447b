// SPDX-License-Identifier: MIT
#include <kvtilt/plan/norm_losses.hpp>

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
  layer.key_gains = {1, 2, 3};
  EXPECT_THAT(message(layer), HasSubstr("3 gains of the key norm for 2 heads of 8 channels"));
  layer.key_gains.assign(8, std::numeric_limits<float>::infinity());
  EXPECT_THAT(message(layer), HasSubstr("a gain of the key norm is not finite"));
  const auto count = losses_from_norms(shape, 64, norm_choices, {}, Norm::Frobenius);
  EXPECT_THAT(std::string(count.message()), HasSubstr("norms of 0 layers for a shape of 1"));
}

}  // namespace
}  // namespace kvtilt
