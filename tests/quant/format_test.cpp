// SPDX-License-Identifier: MIT
#include <kvtilt/quant/format.hpp>

#include "support/fp16_oracle.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>
#include <cstdint>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

constexpr Format per_channel(int bits, int group, RangeRule rule) {
  return {bits, Granularity::PerChannel, group, rule};
}
constexpr Format per_token(int bits, int group, RangeRule rule) {
  return {bits, Granularity::PerToken, group, rule};
}

TEST(Format, LargestGroupSumsExactly) {
  const std::int64_t largest = test::fp16_units().back();
  EXPECT_EQ(largest, std::int64_t{65504} << 24);
  EXPECT_LE(largest * max_group, std::int64_t{1} << 53) << "in double";
  // One more factor of max_group: the product that decides the half of an element in a one-bit
  // group.
  EXPECT_LE(largest, INT64_MAX / max_group / max_group) << "in 64 bits";
}

TEST(Format, WidthsAreOneToEightAndSixteen) {
  for (int bits = -2; bits <= 40; ++bits)
    EXPECT_EQ(is_storage_width(bits), (bits >= 1 && bits <= 8) || bits == 16) << bits;
}

TEST(Format, EachWidthHasItsRule) {
  EXPECT_EQ(default_rule(1), RangeRule::Centroids);
  for (int bits = 2; bits <= 5; ++bits) EXPECT_EQ(default_rule(bits), RangeRule::MinMse);
  for (int bits = 6; bits <= 8; ++bits) EXPECT_EQ(default_rule(bits), RangeRule::MinMax);
  EXPECT_STREQ(to_string(RangeRule::MinMax), "min-max");
  EXPECT_STREQ(to_string(RangeRule::MinMse), "min-mse");
  EXPECT_STREQ(to_string(RangeRule::Centroids), "centroids");
}

TEST(Format, KeysGoPerChannelAndValuesPerToken) {
  EXPECT_EQ(key_format(4), per_channel(4, 0, RangeRule::MinMse));
  EXPECT_EQ(value_format(2), per_token(2, 0, RangeRule::MinMse));
  EXPECT_EQ(key_format(8, Granularity::PerToken, 64), per_token(8, 64, RangeRule::MinMax));
  EXPECT_EQ(value_format(1, Granularity::PerChannel, 32), per_channel(1, 32, RangeRule::Centroids));
  EXPECT_FALSE(Format{}.quantized());
  EXPECT_FALSE(in_keys.quantized());
  EXPECT_TRUE(key_format(8).quantized());
}

TEST(Format, OneBitHoldsHalfTheMagnitude) {
  EXPECT_EQ(largest_magnitude(key_format(1)), 32752.0f);
  for (int bits = 2; bits <= 8; ++bits) EXPECT_EQ(largest_magnitude(key_format(bits)), 65504.0f);
  EXPECT_EQ(largest_magnitude(Format{}), 65504.0f);
}

TEST(ResolveFormat, PerChannelGroupsDefaultToThePage) {
  for (const int page : {32, 64, 128})
    for (const int dim : {8, 72, 576}) {
      const auto format = resolve_format(key_format(4), "keys", dim, page);
      ASSERT_TRUE(format.ok()) << format.message();
      EXPECT_EQ(*format, per_channel(4, page, RangeRule::MinMse));
    }
}

TEST(ResolveFormat, PerTokenGroupsDefaultToTheHeadOr128) {
  for (int dim = 8; dim <= 576; dim += 8) {
    const auto format = resolve_format(value_format(2), "values", dim, 64);
    ASSERT_TRUE(format.ok()) << format.message();
    EXPECT_EQ(format->group, dim < 128 ? dim : 128);
  }
}

TEST(ResolveFormat, PerChannelGroupsAreMultiplesOf16ThatDivideThePage) {
  for (const int page : {32, 64, 128})
    for (int group = 1; group <= 300; ++group) {
      const bool good = group % 16 == 0 && page % group == 0;
      const auto format =
          resolve_format(key_format(4, Granularity::PerChannel, group), "keys", 128, page);
      ASSERT_EQ(format.ok(), good) << group << " of " << page;
      if (good) {
        EXPECT_EQ(format->group, group);
      }
    }
}

TEST(ResolveFormat, PerTokenGroupsAreMultiplesOf16OrTheHead) {
  for (int dim = 8; dim <= 576; dim += 8)
    for (int group = 1; group <= 600; ++group) {
      const auto format =
          resolve_format(value_format(2, Granularity::PerToken, group), "values", dim, 64);
      const int used = group < dim ? group : dim;  // a group never leaves its head
      const bool good = used <= 128 && (used == dim || used % 16 == 0);
      ASSERT_EQ(format.ok(), good) << group << " of " << dim;
      if (good) {
        ASSERT_EQ(format->group, used) << group << " of " << dim;
      }
    }
}

TEST(ResolveFormat, ResolvedFormatsResolveToThemselves) {
  for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken})
    for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8})
      for (const int dim : {8, 72, 128, 200}) {
        const auto once = resolve_format(key_format(bits, granularity), "keys", dim, 64);
        ASSERT_TRUE(once.ok());
        const auto twice = resolve_format(*once, "keys", dim, 64);
        ASSERT_TRUE(twice.ok());
        EXPECT_EQ(*once, *twice);
      }
}

TEST(ResolveFormat, SixteenBitsHaveOneForm) {
  Format format{16, Granularity::PerChannel, 0, RangeRule::MinMse};
  const auto resolved = resolve_format(format, "keys", 64, 64);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(*resolved, Format{});
  format.group = 32;
  EXPECT_FALSE(resolve_format(format, "keys", 64, 64).ok());
}

TEST(ResolveFormat, RulesBelongToWidths) {
  const auto accepts = [](int bits, RangeRule rule) {
    return resolve_format(per_channel(bits, 0, rule), "keys", 64, 64).ok();
  };
  for (int bits = 1; bits <= 8; ++bits) {
    EXPECT_EQ(accepts(bits, RangeRule::Centroids), bits == 1) << bits;
    EXPECT_EQ(accepts(bits, RangeRule::MinMax), bits != 1) << bits;
    EXPECT_EQ(accepts(bits, RangeRule::MinMse), bits >= 2 && bits <= 5) << bits;
  }
}

TEST(ResolveFormatHostile, RefusesNonsense) {
  for (const int bits : {INT_MIN, -1, 0, 9, 15, 17, 32, INT_MAX})
    EXPECT_FALSE(resolve_format(per_token(bits, 0, RangeRule::MinMax), "keys", 64, 64).ok());
  for (const int group : {INT_MIN, -16, -1}) {
    EXPECT_FALSE(resolve_format(per_token(4, group, RangeRule::MinMax), "keys", 64, 64).ok());
    EXPECT_FALSE(resolve_format(per_channel(4, group, RangeRule::MinMax), "keys", 64, 64).ok());
  }
  EXPECT_FALSE(resolve_format(per_channel(4, INT_MAX, RangeRule::MinMax), "keys", 64, 64).ok());
  const auto refused = [](Granularity granularity, RangeRule rule) {
    return std::string(resolve_format({4, granularity, 0, rule}, "keys", 64, 64).message());
  };
  EXPECT_THAT(refused(static_cast<Granularity>(2), RangeRule::MinMax),
              HasSubstr("groups run per channel or per token"));
  EXPECT_THAT(refused(Granularity::PerToken, static_cast<RangeRule>(3)),
              HasSubstr("the rule must be"));
}

TEST(ResolveFormat, SaysWhatIsWrong) {
  const auto format = resolve_format(per_channel(4, 48, RangeRule::MinMax), "keys", 128, 64);
  EXPECT_EQ(format.code(), ErrorCode::InvalidArgument);
  const std::string message(format.message());
  for (const char* part : {"keys", "4 bits", "group 48", "128", "64 tokens", "multiple of 16"})
    EXPECT_THAT(message, HasSubstr(part));
  EXPECT_THAT(
      std::string(resolve_format(per_token(9, 0, RangeRule::MinMax), "values", 64, 64).message()),
      HasSubstr("bits must be 1 to 8, or 16"));
}

TEST(ResolveRecipe, TakesEachDimensionForItsTensor) {
  const LayerShape shape{1, 192, 72, 0};
  const auto recipe = resolve_recipe({value_format(4), value_format(2)}, shape, 64);
  ASSERT_TRUE(recipe.ok());
  EXPECT_EQ(recipe->key.group, 128);
  EXPECT_EQ(recipe->value.group, 72);
  const auto keys = resolve_recipe({value_format(9), value_format(9)}, shape, 64);
  EXPECT_THAT(std::string(keys.message()), HasSubstr("keys"));
  const auto values = resolve_recipe({value_format(4), value_format(9)}, shape, 64);
  EXPECT_THAT(std::string(values.message()), HasSubstr("values"));
}

TEST(Formats, ListTheirWidths) {
  using List = Formats<Keys<4, 16>, Values<2>>;
  static_assert(List::keys::contains(4) && List::keys::contains(16) && !List::keys::contains(2));
  static_assert(List::values::contains(2) && !List::values::contains(16));
  static_assert(!Keys<>::contains(4));
  for (int bits = 0; bits <= 20; ++bits) {
    EXPECT_EQ(AllFormats::keys::contains(bits), is_storage_width(bits));
    EXPECT_EQ(AllFormats::values::contains(bits), is_storage_width(bits));
  }
}

template <int Bits>
concept has_keys = requires {
  typename Keys<Bits>;
};

TEST(Formats, RefuseWidthsThatDoNotExist) {
  static_assert(has_keys<1> && has_keys<8> && has_keys<16>);
  static_assert(!has_keys<0> && !has_keys<9> && !has_keys<32>);
  static_assert(WidthList<Keys<1>> && !WidthList<int>);
}

}  // namespace
}  // namespace kvtilt
