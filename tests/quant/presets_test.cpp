// SPDX-License-Identifier: MIT
#include <kvtilt/quant/presets.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

struct Expected {
  const char* name;
  Recipe recipe;
  int key_bits;
  int value_bits;
};

TEST(Presets, HaveTheWidthsOfTheirNames) {
  for (const Expected& row : {Expected{"k16v16", presets::k16v16, 16, 16},
                              {"k8v8", presets::k8v8, 8, 8},
                              {"k8v4", presets::k8v4, 8, 4},
                              {"k6v4", presets::k6v4, 6, 4},
                              {"k4v4", presets::k4v4, 4, 4},
                              {"k4v2", presets::k4v2, 4, 2},
                              {"k3v2", presets::k3v2, 3, 2},
                              {"k2v2", presets::k2v2, 2, 2},
                              {"k4v8", presets::k4v8, 4, 8},
                              {"k2v4", presets::k2v4, 2, 4}}) {
    EXPECT_EQ(row.recipe.key.bits, row.key_bits) << row.name;
    EXPECT_EQ(row.recipe.value.bits, row.value_bits) << row.name;
    if (row.recipe.key.quantized()) {
      EXPECT_EQ(row.recipe.key, key_format(row.key_bits)) << row.name;
    }
    if (row.recipe.value.quantized()) {
      EXPECT_EQ(row.recipe.value, value_format(row.value_bits)) << row.name;
    }
  }
}

TEST(Presets, KiviHasGroupsOf32) {
  for (const auto& [recipe, bits] : {std::pair{presets::kivi2, 2}, {presets::kivi4, 4}}) {
    EXPECT_EQ(recipe.key, (Format{bits, Granularity::PerChannel, 32, RangeRule::MinMse}));
    EXPECT_EQ(recipe.value, (Format{bits, Granularity::PerToken, 32, RangeRule::MinMse}));
  }
}

TEST(Presets, FitEveryShape) {
  for (const Recipe& recipe :
       {presets::k16v16, presets::k8v8, presets::k8v4, presets::k6v4, presets::k4v4, presets::k4v2,
        presets::k3v2, presets::k2v2, presets::k4v8, presets::k2v4, presets::kivi2, presets::kivi4})
    for (const int page : {32, 64, 128})
      for (int dim = 8; dim <= max_head_dim; dim += 8)
        ASSERT_TRUE(resolve_recipe(recipe, {1, dim, dim, 0}, page).ok()) << dim;
}

TEST(Presets, NameWhatTheGrammarCannot) {
  EXPECT_EQ(std::size(presets::all), 2u);
  EXPECT_EQ(presets::all[0].name, "kivi2");
  EXPECT_EQ(presets::all[0].recipe, presets::kivi2);
  EXPECT_EQ(presets::all[1].name, "kivi4");
  EXPECT_EQ(presets::all[1].recipe, presets::kivi4);
}

}  // namespace
}  // namespace kvtilt
