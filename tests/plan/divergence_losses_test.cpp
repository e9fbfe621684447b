// SPDX-License-Identifier: MIT
#include <kvtilt/plan/divergence_losses.hpp>

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

const CacheShape probed_shape = CacheShape::uniform(2, 2, 64);
const FormatChoices probed_choices{
    {key_format(2), key_format(3), key_format(4), key_format(8), Format{}},
    {value_format(2), value_format(4), value_format(4, Granularity::PerChannel, 32)}};

/// The error law for this format with 64 channels and pages of 64 tokens.
double law(const Format& format) { return relative_error(*resolve_format(format, "", 64, 64)); }

std::vector<Divergence> probes_of(const std::vector<int>& heads, const std::vector<int>& widths,
                                  double (*kl)(int layer, int head, Role tensor, int bits)) {
  std::vector<Divergence> probes;
  for (int layer = 0; layer < 2; ++layer)
    for (const int head : heads)
      for (const Role tensor : {Role::Keys, Role::Values})
        for (const int bits : widths)
          probes.push_back({layer, head, tensor,
                            tensor == Role::Keys ? key_format(bits) : value_format(bits),
                            kl(layer, head, tensor, bits)});
  return probes;
}

TEST(DivergenceLosses, OneProbeScalesWithTheLaw) {
  const auto probes = probes_of({-1}, {4}, [](int layer, int, Role tensor, int) {
    return 0.25 * (layer + 1) * (tensor == Role::Keys ? 10 : 1);
  });
  const auto losses = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  ASSERT_TRUE(check_losses(*losses, probed_shape, probed_choices).ok());
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const HeadLosses& entry = losses->layers[layer][0];
    const double kl = 0.25 * static_cast<double>(layer + 1);
    EXPECT_EQ(entry.keys[2], 10 * kl) << "measured";
    for (std::size_t i = 0; i < probed_choices.keys.size(); ++i)
      EXPECT_NEAR(entry.keys[i],
                  10 * kl * law(probed_choices.keys[i]) / law(probed_choices.keys[2]), 1e-12);
    EXPECT_NEAR(entry.values[2], kl * law(probed_choices.values[2]) / law(probed_choices.values[1]),
                1e-12);
  }
}

TEST(DivergenceLosses, MeasuredFormatsAreExactAndOthersLieBetween) {
  const auto probes = probes_of({-1}, {2, 4, 8}, [](int, int, Role, int bits) {
    return bits == 2 ? 7.0 : bits == 4 ? 0.1 : 1e-5;
  });
  const auto losses = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  const std::vector<double>& keys = losses->layers[0][0].keys;
  EXPECT_EQ(keys[0], 7);
  EXPECT_EQ(keys[2], 0.1);
  EXPECT_EQ(keys[3], 1e-5);
  EXPECT_GT(keys[1], 0.1);
  EXPECT_LT(keys[1], 7);
  // The probes' divergence is 70 times as large at 2 bits as at 4; 3 bits lie on that power law.
  const double slope = std::log(70) / std::log(law(key_format(2)) / law(key_format(4)));
  EXPECT_NEAR(std::log(keys[1] / 0.1), slope * std::log(law(key_format(3)) / law(key_format(4))),
              1e-9);
  EXPECT_NEAR(keys[4], 1e-5 * law(Format{}) / law(key_format(8)), 1e-15) << "proportional outside";
}

TEST(DivergenceLosses, ProbesNeedNotBeChoices) {
  const auto probes = probes_of({-1}, {5}, [](int, int, Role, int) { return 1.0; });
  const auto losses = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  EXPECT_NEAR(losses->layers[1][0].keys[2], law(key_format(4)) / law(key_format(5)), 1e-12);
}

TEST(DivergenceLosses, HeadsHaveTheirOwnOrShareTheLayers) {
  auto probes = probes_of({0, 1}, {4}, [](int, int head, Role, int) { return head + 1.0; });
  const auto own =
      losses_from_divergence(probed_shape, 64, probed_choices, probes, {}, RecipePer::Head);
  ASSERT_TRUE(own.ok()) << own.message();
  EXPECT_EQ(own->layers[0][0].keys[2], 1);
  EXPECT_EQ(own->layers[0][1].keys[2], 2);
  const auto layer = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  EXPECT_THAT(std::string(layer.message()),
              HasSubstr("layer 0, keys: no divergence was measured with all heads"));

  probes = probes_of({-1}, {4}, [](int, int, Role, int) { return 3.0; });
  const auto shared =
      losses_from_divergence(probed_shape, 64, probed_choices, probes, {}, RecipePer::Head);
  ASSERT_TRUE(shared.ok()) << shared.message();
  EXPECT_DOUBLE_EQ(shared->layers[0][0].keys[2], 1.5) << "without captured data, evenly";
}

CapturedLayer captured_layer(std::uint64_t seed) {
  test::Random random(seed);
  CapturedLayer layer;
  layer.tokens = 64;
  layer.kv_heads = 2;
  layer.key_dim = layer.value_dim = 64;
  for (int i = 0; i < 64 * 2 * 64; ++i) {
    const bool outlier = i % 64 == 7;
    const int head = i / 64 % 2;
    layer.keys.push_back(static_cast<float>(random.normal() * (outlier ? 30 : 1) * (head + 1)));
    layer.values.push_back(static_cast<float>(random.normal()));
  }
  return layer;
}

// Outlier channels hurt per-token groups and not per-channel ones, which only captured data can
// show.
TEST(DivergenceLosses, ScalesWithTheErrorOfTheTensorItself) {
  FormatChoices both = probed_choices;
  both.keys.push_back(value_format(4));  // per token
  const auto probes = probes_of({-1}, {4}, [](int, int, Role, int) { return 1.0; });
  const std::vector captured{captured_layer(81), captured_layer(82)};
  const auto losses = losses_from_divergence(probed_shape, 64, both, probes, captured);
  ASSERT_TRUE(losses.ok()) << losses.message();
  const auto statistics = losses_from_statistics(probed_shape, 64, both, captured);
  for (std::size_t i = 0; i < both.keys.size(); ++i)
    EXPECT_NEAR(losses->layers[0][0].keys[i],
                statistics->layers[0][0].keys[i] / statistics->layers[0][0].keys[2],
                1e-9 * losses->layers[0][0].keys[i])
        << i;
  EXPECT_GT(losses->layers[0][0].keys.back(), 2);
  EXPECT_NEAR(losses_from_divergence(probed_shape, 64, both, probes)->layers[0][0].keys.back(), 1,
              1e-12);

  const auto heads =
      losses_from_divergence(probed_shape, 64, both, probes, captured, RecipePer::Head);
  ASSERT_TRUE(heads.ok()) << heads.message();
  EXPECT_NEAR(heads->layers[0][0].keys[2] + heads->layers[0][1].keys[2], 1, 1e-12);
  EXPECT_NEAR(heads->layers[0][1].keys[2] / heads->layers[0][0].keys[2], 4, 2);
}

TEST(DivergenceLosses, KeysAloneWhereValuesAreInThem) {
  const CacheShape shape{{LayerShape::latent(64, 16), {1, 64, 64}}};
  std::vector<Divergence> probes = {{0, -1, Role::Keys, key_format(4), 0.5},
                                    {1, -1, Role::Keys, key_format(4), 0.25},
                                    {1, -1, Role::Values, value_format(4), 0.125}};
  const auto losses = losses_from_divergence(shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  EXPECT_TRUE(check_losses(*losses, shape, probed_choices).ok());
  EXPECT_EQ(losses->layers[0][0].keys[2], 0.5);
  EXPECT_EQ(losses->layers[0][0].values, std::vector<double>{});
  EXPECT_EQ(losses->layers[1][0].values[1], 0.125);
  probes.push_back({0, -1, Role::Values, value_format(4), 0.5});
  EXPECT_EQ(std::string(losses_from_divergence(shape, 64, probed_choices, probes).message()),
            "divergence 3 is of values, but those of layer 0 are in its keys");
}

TEST(DivergenceLosses, TheLastOfSeveralMeasurementsCounts) {
  auto probes = probes_of({-1}, {4}, [](int, int, Role, int) { return 1.0; });
  probes.push_back({0, -1, Role::Keys, key_format(4), 0.5});
  const auto losses = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  EXPECT_EQ(losses->layers[0][0].keys[2], 0.5);
}

TEST(DivergenceLosses, AFormatWithoutErrorIsNoPointOfAPowerLaw) {
  EXPECT_EQ(detail::scale_divergence({{Format{}, 0, 0.5}, {key_format(2), 4, 2}}, 3), 1.5);
}

TEST(DivergenceLosses, HeadsOfATensorWithoutErrorsShareNothing) {
  const auto probes = probes_of({-1}, {4}, [](int, int, Role, int) { return 1.0; });
  std::vector captured{captured_layer(84), captured_layer(85)};
  captured[0].keys.assign(captured[0].keys.size(), 0.0f);
  const auto losses =
      losses_from_divergence(probed_shape, 64, probed_choices, probes, captured, RecipePer::Head);
  ASSERT_TRUE(losses.ok()) << losses.message();
  for (const HeadLosses& head : losses->layers[0])
    EXPECT_EQ(head.keys, std::vector<double>(probed_choices.keys.size(), 0.0));
}

TEST(DivergenceLosses, ZeroesStayZeroes) {
  const auto probes =
      probes_of({-1}, {2, 4}, [](int, int, Role, int bits) { return bits == 2 ? 1.0 : 0.0; });
  const auto losses = losses_from_divergence(probed_shape, 64, probed_choices, probes);
  ASSERT_TRUE(losses.ok()) << losses.message();
  ASSERT_TRUE(check_losses(*losses, probed_shape, probed_choices).ok());
  EXPECT_EQ(losses->layers[0][0].keys[2], 0);
  EXPECT_EQ(losses->layers[0][0].keys[3], 0);
  EXPECT_GT(losses->layers[0][0].keys[1], 0);
}

TEST(DivergenceLossesHostile, NameTheProbe) {
  const auto good = probes_of({-1}, {4}, [](int, int, Role, int) { return 1.0; });
  const auto message = [](const std::vector<Divergence>& probes) {
    return std::string(losses_from_divergence(probed_shape, 64, probed_choices, probes).message());
  };
  EXPECT_EQ(message(good), "");
  for (const double bad :
       {-1e-3, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    auto probes = good;
    probes[2].kl = bad;
    EXPECT_THAT(message(probes), HasSubstr("divergence 2 is"));
  }
  auto probes = good;
  probes[1].layer = 2;
  EXPECT_THAT(message(probes), HasSubstr("divergence 1: there is no layer 2"));
  probes = good;
  probes[1].head = 2;
  EXPECT_THAT(message(probes), HasSubstr("with a kv head 2"));
  probes = good;
  probes.pop_back();
  EXPECT_THAT(message(probes),
              HasSubstr("layer 1, values: no divergence was measured with all heads"));
  probes = good;
  probes[0].format.group = 48;
  EXPECT_THAT(message(probes), HasSubstr("layer 0, keys: a probe: 4 bits, group 48"));
  EXPECT_THAT(message({}), HasSubstr("layer 0, keys: no divergence"));
  const std::vector captured{captured_layer(83)};
  EXPECT_THAT(
      std::string(
          losses_from_divergence(probed_shape, 64, probed_choices, good, captured).message()),
      HasSubstr("captured 1 layers for a shape of 2"));
}

}  // namespace
}  // namespace kvtilt
