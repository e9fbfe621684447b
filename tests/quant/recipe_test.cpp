// SPDX-License-Identifier: MIT
#include <kvtilt/quant/recipe.hpp>

#include "support/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

const std::vector<int> widths = {1, 2, 3, 4, 5, 6, 7, 8, 16};

Format expected_format(int bits, char letter, Granularity usual, int group) {
  if (bits == 16) return {};
  const Granularity granularity = letter == 'c'   ? Granularity::PerChannel
                                  : letter == 't' ? Granularity::PerToken
                                                  : usual;
  return {bits, granularity, group, default_rule(bits)};
}

/// Calls body(name, recipe) for the whole grammar: widths, letters and some groups.
template <class Body>
void for_each_name(Body body) {
  for (const int key_bits : widths)
    for (const int value_bits : widths)
      for (const std::string key_letter : {"", "c", "t"})
        for (const std::string value_letter : {"", "c", "t"})
          for (const int key_group : {0, 16, 32, 64, 72, 128, 9999})
            for (const int value_group : {0, 16, 32, 64, 72, 128, 1}) {
              if ((key_group == 0) != (value_group == 0)) continue;
              std::string name = "k" + std::to_string(key_bits) + key_letter + "v" +
                                 std::to_string(value_bits) + value_letter;
              if (key_group > 0)
                name += ":g" + std::to_string(key_group) + "," + std::to_string(value_group);
              body(name, Recipe{expected_format(key_bits, key_letter[0], Granularity::PerChannel,
                                                key_group),
                                expected_format(value_bits, value_letter[0], Granularity::PerToken,
                                                value_group)});
            }
}

TEST(Recipe, ReadsTheWholeGrammar) {
  int names = 0;
  for_each_name([&](const std::string& name, const Recipe& expected) {
    const auto recipe = parse_recipe(name);
    ASSERT_TRUE(recipe.ok()) << recipe.message();
    ASSERT_EQ(*recipe, expected) << name;
    ++names;
  });
  EXPECT_EQ(names, 9 * 9 * 3 * 3 * 37);
}

TEST(Recipe, PrintsWhatItReads) {
  for_each_name([](const std::string& name, const Recipe& expected) {
    const std::string printed = to_string(expected);
    const auto again = parse_recipe(printed);
    ASSERT_TRUE(again.ok()) << printed;
    ASSERT_EQ(*again, expected) << name << " printed as " << printed;
    if (expected.key.quantized() && expected.value.quantized()) {
      ASSERT_LE(printed.size(), name.size());
    }
  });
}

TEST(Recipe, PrintsNoLetterThatIsUsual) {
  EXPECT_EQ(to_string(presets::k4v2), "k4v2");
  EXPECT_EQ(to_string(presets::k16v16), "k16v16");
  EXPECT_EQ(to_string(presets::kivi2), "k2v2:g32,32");
  EXPECT_EQ(to_string(*parse_recipe("k4tv4:g64,64")), "k4tv4:g64,64");
  EXPECT_EQ(to_string(*parse_recipe("k4cv4t")), "k4v4");
  EXPECT_EQ(to_string(*parse_recipe("k4tv4c")), "k4tv4c");
  EXPECT_EQ(to_string(*parse_recipe("k16v4:g64,32")), "k16v4:g32,32");
}

TEST(Recipe, NamesKeysAloneIfValuesAreInThem) {
  for (const int bits : widths)
    for (const std::string letter : {"", "c", "t"})
      for (const int group : {0, 16, 32, 64, 72, 128, 9999}) {
        std::string name = "k" + std::to_string(bits) + letter;
        if (group > 0) name += ":g" + std::to_string(group);
        const auto recipe = parse_recipe(name);
        ASSERT_TRUE(recipe.ok()) << recipe.message();
        EXPECT_EQ(recipe->key, expected_format(bits, letter[0], Granularity::PerChannel, group));
        EXPECT_EQ(recipe->value, in_keys);
        EXPECT_EQ(*parse_recipe(to_string(*recipe)), *recipe) << name;
      }
  EXPECT_EQ(to_string(*parse_recipe("k8c")), "k8");
  EXPECT_EQ(to_string(*parse_recipe("k4t:g32")), "k4t:g32");
}

TEST(Recipe, ReadsEveryPreset) {
  const std::vector<std::pair<std::string, Recipe>> named = {
      {"k16v16", presets::k16v16}, {"k8v8", presets::k8v8},   {"k8v4", presets::k8v4},
      {"k6v4", presets::k6v4},     {"k4v4", presets::k4v4},   {"k4v2", presets::k4v2},
      {"k3v2", presets::k3v2},     {"k2v2", presets::k2v2},   {"k4v8", presets::k4v8},
      {"k2v4", presets::k2v4},     {"kivi2", presets::kivi2}, {"kivi4", presets::kivi4}};
  for (const auto& [name, recipe] : named) {
    const auto read = parse_recipe(name);
    ASSERT_TRUE(read.ok()) << name;
    EXPECT_EQ(*read, recipe) << name;
    const auto again = parse_recipe(to_string(recipe));
    ASSERT_TRUE(again.ok()) << name;
    EXPECT_EQ(*again, recipe) << name;
  }
}

const std::vector<std::string> malformed = {"",
                                            "k",
                                            "v",
                                            "v4",
                                            "k0",
                                            "k9t",
                                            "k4ct",
                                            "k4:",
                                            "k4:g",
                                            "k4:g0",
                                            "k4:g64,",
                                            "k4:g64,64",
                                            "k4:g64 ",
                                            "4v4",
                                            "kv",
                                            "k4v",
                                            "kv4",
                                            "K4V4",
                                            "k4v4 ",
                                            " k4v4",
                                            "k 4v4",
                                            "k0v4",
                                            "k4v0",
                                            "k9v4",
                                            "k4v9",
                                            "k15v4",
                                            "k17v4",
                                            "k32v4",
                                            "k-4v4",
                                            "k+4v4",
                                            "k4.5v4",
                                            "k04v4",
                                            "k4v04",
                                            "k016v16",
                                            "k4v4:g064,64",
                                            "k4v4:g64,064",
                                            "k4xv4",
                                            "k4ctv4",
                                            "k4ccv4",
                                            "k4v4cc",
                                            "k4v4x",
                                            "k4v4:",
                                            "k4v4:g",
                                            "k4v4:g64",
                                            "k4v4:g64,",
                                            "k4v4:g,64",
                                            "k4v4:64,64",
                                            "k4v4g64,64",
                                            "k4v4:g0,64",
                                            "k4v4:g64,0",
                                            "k4v4:g-64,64",
                                            "k4v4:g64,64,64",
                                            "k4v4:g64,64x",
                                            "k4v4:g64 ,64",
                                            "k4v4:g99999,64",
                                            "k4v4:g64,10000",
                                            "k4294967300v4",
                                            "k4v4294967300",
                                            "k4v18446744073709551620",
                                            "v4k4",
                                            "k4v4k4v4",
                                            "kivi",
                                            "kivi3",
                                            "kivi22",
                                            "KIVI2",
                                            "kivi2 ",
                                            "k4\n",
                                            "q4_0",
                                            "fp16"};

TEST(RecipeHostile, RefusesEveryMalformedName) {
  for (const std::string& name : malformed) {
    const auto recipe = parse_recipe(name);
    EXPECT_FALSE(recipe.ok()) << "'" << name << "'";
    EXPECT_EQ(recipe.code(), ErrorCode::InvalidArgument) << name;
    EXPECT_THAT(std::string(recipe.message()), HasSubstr("k<bits>v<bits>")) << name;
    EXPECT_THAT(std::string(recipe.message()), HasSubstr("'" + name + "'"));
  }
}

TEST(RecipeHostile, RefusesNamesWithANullByte) {
  EXPECT_FALSE(parse_recipe(std::string_view("k4v4\0", 5)).ok());
  EXPECT_FALSE(parse_recipe(std::string_view("k4\0v4", 5)).ok());
}

TEST(RecipeHostile, ReadsNothingBehindAView) {
  EXPECT_FALSE(parse_recipe(std::string_view("k4v4", 3)).ok());
  const auto recipe = parse_recipe(std::string_view("k4v16", 4));
  ASSERT_TRUE(recipe.ok());
  EXPECT_EQ(recipe->value.bits, 1);
}

TEST(RecipeHostile, QuotesOnlyTheStartOfLongNames) {
  const std::string name(100000, 'k');
  const auto recipe = parse_recipe(name);
  EXPECT_FALSE(recipe.ok());
  EXPECT_LT(recipe.message().size(), 512u);
  EXPECT_THAT(std::string(recipe.message()), HasSubstr("token) may follow a width"));
}

/// Whatever parses prints to a name that parses to the same.
TEST(RecipeRandom, MutatedNamesParseOrFailCleanly) {
  test::Random random(8);
  const std::string alphabet = "kvctg:,0123456789i";
  for (int round = 0; round < 200000; ++round) {
    std::string name = random.chance(2) ? "k4tv4:g64,64" : "k16v2";
    for (int edit = random.between(1, 3); edit > 0; --edit) {
      const std::size_t at = static_cast<std::size_t>(random.below(static_cast<int>(name.size())));
      const char letter =
          alphabet[static_cast<std::size_t>(random.below(static_cast<int>(alphabet.size())))];
      if (random.chance(2))
        name[at] = letter;
      else if (random.chance(2) || name.size() < 2)
        name.insert(at, 1, letter);
      else
        name.erase(at, 1);
    }
    const auto recipe = parse_recipe(name);
    if (!recipe) continue;
    const auto again = parse_recipe(to_string(*recipe));
    ASSERT_TRUE(again.ok()) << name;
    ASSERT_EQ(*again, *recipe) << name;
  }
}

}  // namespace
}  // namespace kvtilt
