// SPDX-License-Identifier: MIT
#include <kvtilt/plan/losses.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

TEST(Losses, ChoicesResolveAgainstEachLayer) {
  const FormatChoices choices{{key_format(4), Format{}}, {value_format(2), value_format(3)}};
  const auto resolved = resolve_choices(choices, {4, 128, 72}, 64, 0);
  ASSERT_TRUE(resolved.ok()) << resolved.message();
  EXPECT_EQ(resolved->keys[0].group, 64);
  EXPECT_EQ(resolved->keys[1], Format{});
  EXPECT_EQ(resolved->values[1].group, 72);
}

TEST(LossesHostile, ChoicesThatDoNotFitNameLayerAndTensor) {
  FormatChoices choices{{key_format(4)}, {value_format(2), value_format(2)}};
  choices.values[1].group = 24;
  EXPECT_THAT(std::string(resolve_choices(choices, {4, 128, 128}, 64, 7).message()),
              HasSubstr("layer 7: values: 2 bits, group 24"));
  choices.values.clear();
  EXPECT_THAT(std::string(resolve_choices(choices, {4, 128, 128}, 64, 7).message()),
              HasSubstr("1 key formats, 0 value formats"));
}

TEST(Losses, ValuesInKeysHaveNoFormatToChoose) {
  const FormatChoices choices{{key_format(4)}, {value_format(2), value_format(3)}};
  const CacheShape shape{{LayerShape::latent(512, 64), {1, 64, 64}}};
  const auto resolved = resolve_choices(choices, shape.layers[0], 64, 0);
  ASSERT_TRUE(resolved.ok()) << resolved.message();
  EXPECT_EQ(resolved->values, std::vector<Format>{in_keys});
  EXPECT_TRUE(resolve_choices({choices.keys, {}}, shape.layers[0], 64, 0).ok());
  EXPECT_FALSE(resolve_choices({{}, choices.values}, shape.layers[0], 64, 0).ok());
  EXPECT_FALSE(resolve_choices({choices.keys, {in_keys}}, shape.layers[1], 64, 0).ok());
  EXPECT_TRUE(
      check_losses({{{HeadLosses{{1}, {}}}, {HeadLosses{{1}, {2, 3}}}}}, shape, choices).ok());
  EXPECT_FALSE(
      check_losses({{{HeadLosses{{1}, {2, 3}}}, {HeadLosses{{1}, {2, 3}}}}}, shape, choices).ok());
}

TEST(Losses, OneEntryOrOnePerHead) {
  CacheShape shape = CacheShape::uniform(3, 2, 64);
  shape.layers[1] = LayerShape{};
  const FormatChoices choices{{key_format(4)}, {value_format(2), value_format(3)}};
  const HeadLosses entry{{0.5}, {2, 0}};
  EXPECT_TRUE(check_losses({{{entry}, {}, {entry, entry}}}, shape, choices).ok());
  EXPECT_FALSE(check_losses({{{entry}, {}, {entry, entry, entry}}}, shape, choices).ok());
  EXPECT_FALSE(check_losses({{{entry}, {entry}, {}}}, shape, choices).ok());
}

TEST(LossesHostile, OnlyFiniteNumbersFromZeroOn) {
  const CacheShape shape = CacheShape::uniform(1, 1, 64);
  const FormatChoices choices{{key_format(4)}, {value_format(2)}};
  for (const double good : {0.0, 1e-320, 1.0, 1e300})
    EXPECT_TRUE(check_losses({{{HeadLosses{{good}, {1}}}}}, shape, choices).ok()) << good;
  for (const double bad : {-1e-9, 1.1e300, std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    const Status status = check_losses({{{HeadLosses{{bad}, {1}}}}}, shape, choices);
    EXPECT_EQ(status.code(), ErrorCode::InvalidValue) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the loss of keys in format 0"));
  }
}

}  // namespace
}  // namespace kvtilt
