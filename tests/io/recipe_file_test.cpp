// SPDX-License-Identifier: MIT
#include <kvtilt/io/recipe_file.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/random.hpp"
#include "support/temporary_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

RecipeFile small_file() {
  RecipeFile file;
  file.shape = CacheShape::uniform(3, 2, 128);
  file.shape.layers[2] = LayerShape{};
  file.plan = Plan{
      {{presets::k4v2}, {presets::k8v4, {key_format(3, Granularity::PerToken, 64), Format{}}}, {}}};
  file.made_by = "a \"test\"";
  file.budget = "3.5 bits";
  return file;
}

const char* const small_text = R"({
  "kvtilt_recipe": 1,
  "made_by": "a \"test\"",
  "budget": "3.5 bits",
  "page_tokens": 64,
  "layers": [
    {"layer": 0, "kv_heads": 2, "key_dim": 128, "value_dim": 128, "keys": "4c:min-mse", "values": "2t:min-mse"},
    {"layer": 1, "kv_heads": 2, "key_dim": 128, "value_dim": 128, "keys": ["8c:min-max", "3t:g64:min-mse"], "values": ["4t:min-mse", "16"]},
    {"layer": 2, "kv_heads": 0}
  ]
}
)";

std::string replaced(std::string_view from, std::string_view to) {
  std::string text = small_text;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

/// The error after replacing `from` with `to` in the small file; "" if it is read.
std::string edited(std::string_view from, std::string_view to) {
  const auto file = parse_recipe_file(replaced(from, to), "f");
  EXPECT_TRUE(file.ok() || file.code() == ErrorCode::Corrupt);
  return std::string(file.message());
}

TEST(RecipeFileGolden, LooksLikeThis) { EXPECT_EQ(to_text(small_file()).value(), small_text); }

TEST(RecipeFile, SaysWhatIsTransformed) {
  for (const bool keys : {false, true})
    for (const bool values : {false, true}) {
      RecipeFile file = small_file();
      file.hadamard_keys = keys;
      file.hadamard_values = values;
      const std::string text = to_text(file).value();
      EXPECT_EQ(text.find("hadamard") != std::string::npos, keys || values);
      const RecipeFile read = parse_recipe_file(text, "f").value();
      EXPECT_EQ(read.hadamard_keys, keys);
      EXPECT_EQ(read.hadamard_values, values);
    }
  const auto error = [](const std::string& list) {
    return edited("\"page_tokens\"", "\"hadamard\": " + list + ", \"page_tokens\"");
  };
  EXPECT_EQ(error("[]"), "");
  EXPECT_EQ(error("[\"values\"]"), "");
  EXPECT_THAT(error("\"values\""), HasSubstr("hadamard"));
  EXPECT_THAT(error("[1]"), HasSubstr("hadamard"));
  EXPECT_THAT(error("[\"Values\"]"), HasSubstr("is \"Values\", not \"keys\" or \"values\""));
  EXPECT_THAT(error("[\"keys\", \"keys\"]"), HasSubstr("is there twice"));
}

TEST(RecipeFile, ReadsWhatItWrote) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "model.recipe.json";
  const RecipeFile file = small_file();
  ASSERT_TRUE(write_recipe_file(path, file).ok());
  const auto read = read_recipe_file(path);
  ASSERT_TRUE(read.ok()) << read.message();
  EXPECT_EQ(read->plan.recipes, file.plan.recipes);
  EXPECT_EQ(read->shape.layers, file.shape.layers);
  EXPECT_EQ(read->page_tokens, 64);
  EXPECT_EQ(read->made_by, file.made_by);
  EXPECT_EQ(read->budget, file.budget);
  EXPECT_EQ(to_text(*read).value(), folder.read("model.recipe.json"));
}

TEST(RecipeFile, SaysWhereValuesAreInKeys) {
  RecipeFile file;
  file.shape.layers = {LayerShape::latent(512, 64), {1, 64, 64}};
  file.plan = {{{parse_recipe("k8").value()}, {presets::k8v8}}};
  const std::string text = to_text(file).value();
  EXPECT_THAT(text, HasSubstr("\"keys\": \"8c:min-max\", \"values\": \"in-keys\"}"));
  const RecipeFile read = parse_recipe_file(text, "f").value();
  EXPECT_EQ(read.shape.layers, file.shape.layers);
  EXPECT_EQ(read.plan.recipes, file.plan.recipes);
  CacheShape apart = file.shape;
  apart.layers[0].values_in_keys = false;
  EXPECT_EQ(
      std::string(check_fits(file, apart, 64).message()),
      "layer 0: the recipe file was made for 1 kv heads of 576 and 512 channels (keys, values "
      "in keys), the model has 1 of 576 and 512");
  EXPECT_THAT(edited("\"2t:min-mse\"", "[\"in-keys\", \"2t\"]"), HasSubstr("one format for one"));
  EXPECT_THAT(edited("\"4t:min-mse\"", "\"in-keys\""),
              HasSubstr("impossible recipe for kv head 1: values of 16 bits"));
}

TEST(RecipeFile, MayBeWrittenInAnyOtherWay) {
  const auto file = parse_recipe_file(
      R"({"layers":[{"values":["2t"],"keys":"4c","value_dim":64,"key_dim":128,"kv_heads":1,
          "layer":0}],"page_tokens":32,"kvtilt_recipe":1})",
      "f");
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_EQ(file->plan.recipes, Plan{{{presets::k4v2}}}.recipes);
  EXPECT_EQ(file->shape.layers[0].value_dim, 64);
  EXPECT_EQ(file->page_tokens, 32);
  EXPECT_EQ(file->made_by, "");
}

TEST(RecipeFile, LeavesRecipesOfLayersWithoutCacheAway) {
  RecipeFile file = small_file();
  file.plan.recipes[2] = {presets::k16v16};
  EXPECT_EQ(to_text(file).value(), small_text);
}

Format random_format(test::Random& random, int dim, int page_tokens) {
  while (true) {
    Format format;
    format.bits = random.chance(9) ? 16 : random.between(1, 8);
    if (format.bits == 16 && random.chance(2)) return Format{};
    format.granularity = random.chance(2) ? Granularity::PerChannel : Granularity::PerToken;
    format.group = random.chance(3) ? 0 : 16 * random.between(1, 40);
    format.rule = static_cast<RangeRule>(random.below(3));
    if (resolve_format(format, "", dim, page_tokens).ok()) return format;
  }
}

TEST(RecipeFileProperty, EveryPlanReadsBackTheSame) {
  test::Random random(11);
  for (int run = 0; run < 300; ++run) {
    RecipeFile file;
    file.page_tokens = 32 << random.below(3);
    for (int layer = random.between(1, 12); layer > 0; --layer) {
      LayerShape shape{random.between(0, 9), 8 * random.between(1, 72), 8 * random.between(1, 72)};
      std::vector<Recipe> recipes(random.chance(2) ? 1 : static_cast<std::size_t>(shape.kv_heads));
      if (shape.kv_heads == 0) {
        shape = LayerShape{};
        recipes.clear();
      }
      for (Recipe& recipe : recipes) {
        recipe.key = random_format(random, shape.key_dim, file.page_tokens);
        recipe.value = random_format(random, shape.value_dim, file.page_tokens);
      }
      file.shape.layers.push_back(shape);
      file.plan.recipes.push_back(std::move(recipes));
    }
    const std::string text = to_text(file).value();
    const auto read = parse_recipe_file(text, "f");
    ASSERT_TRUE(read.ok()) << read.message() << text;
    EXPECT_EQ(read->plan.recipes, file.plan.recipes);
    EXPECT_EQ(read->shape.layers, file.shape.layers);
    EXPECT_EQ(to_text(*read).value(), text);
    EXPECT_TRUE(check_fits(*read, file.shape, file.page_tokens).ok());
  }
}

TEST(RecipeFileHostile, NamesLineAndKeyOfWhatIsWrong) {
  EXPECT_EQ(edited("\"kvtilt_recipe\": 1,", ""), "f:1: the document has no key 'kvtilt_recipe'");
  EXPECT_THAT(
      edited("\"kvtilt_recipe\": 1", "\"kvtilt_recipe\": 2"),
      HasSubstr("f:2: key 'kvtilt_recipe' is 2; this is kvtilt 0.1, which reads version 1"));
  EXPECT_THAT(edited("\"kvtilt_recipe\": 1", "\"kvtilt_recipe\": \"1\""),
              HasSubstr("is \"1\", not"));
  EXPECT_EQ(edited("\"budget\"", "\"bits\""), "f:4: key 'bits' is not known");
  EXPECT_EQ(edited("\"3.5 bits\"", "3.5"), "f:4: key 'budget' is 3.5, not a string");
  EXPECT_EQ(edited("  \"page_tokens\": 64,\n", ""), "f:1: the document has no key 'page_tokens'");
  for (const std::string tokens : {"16", "65"})
    EXPECT_EQ(edited("64,", tokens + ","), "f:5: key 'page_tokens' is impossible: page_tokens is " +
                                               tokens + ", must be 32, 64 or 128");
  for (const std::string tokens : {"-64", "1000000000000", "64.0", "\"64\""})
    EXPECT_THAT(edited("64,", tokens + ","),
                HasSubstr("f:5: key 'page_tokens' is " + tokens.substr(0, 2)));
  EXPECT_EQ(edited("\"layer\": 1", "\"layer\": 2"),
            "f:8: key 'layer' of 'layers' is 2, not a whole number from 1 to 1");
  EXPECT_EQ(edited("\"layer\": 1, ", ""), "f:8: element 1 of key 'layers' has no key 'layer'");
  EXPECT_THAT(
      edited("\"kv_heads\": 2", "\"kv_heads\": 1025"),
      HasSubstr("f:7: key 'kv_heads' of 'layers' is 1025, not a whole number from 0 to 1024"));
  EXPECT_THAT(edited("\"key_dim\": 128", "\"key_dim\": 584"), HasSubstr("f:7: key 'key_dim'"));
  EXPECT_THAT(edited("\"key_dim\": 128", "\"key_dim\": 12"),
              HasSubstr("f:7: element 0 of key 'layers' is impossible: layer 0: head dimensions"));
  EXPECT_THAT(edited("\"keys\": \"4c:min-mse\", ", ""),
              HasSubstr("f:7: element 0 of key 'layers' has no key 'keys'"));
  EXPECT_THAT(edited("\"values\": \"2t", "\"window\": 3, \"values\": \"2t"),
              HasSubstr("f:7: key 'window' of 'layers' is not known"));
  EXPECT_THAT(edited("{\"layer\": 2,", "{\"layer\": 2, \"keys\": \"4c\","),
              HasSubstr("f:9: key 'keys' of 'layers' is not known"));
  EXPECT_THAT(edited("\"layers\": [", "\"layers\": [7,"),
              HasSubstr("f:6: element 0 of key 'layers' is 7"));
  EXPECT_THAT(edited("\"page_tokens\": 64,", "\"page_tokens\": 64"),
              HasSubstr("f:6: not valid JSON"));
  EXPECT_THAT(edited("\"page_tokens\"", "\"budget\": \"\", \"page_tokens\""),
              HasSubstr("f:5: key 'budget' appears twice"));
}

TEST(RecipeFileHostile, NamesLineAndHeadOfAFormatThatCannotBe) {
  EXPECT_THAT(edited("\"4c:min-mse\"", "\"9c\""),
              HasSubstr("f:7: key 'keys' of 'layers' is no format: format '9c' does not exist"));
  EXPECT_THAT(edited("\"4c:min-mse\"", "4"),
              HasSubstr("f:7: key 'keys' of 'layers' is 4, not a format or a list of formats"));
  EXPECT_THAT(edited("\"16\"]", "16]"),
              HasSubstr("f:8: element 1 of key 'values' of 'layers' is 16, not a string"));
  EXPECT_THAT(edited("\"16\"]", "\"17t\"]"),
              HasSubstr("f:8: element 1 of key 'values' of 'layers' is no format"));
  EXPECT_THAT(
      edited(", \"16\"]", "]"),
      HasSubstr("f:8: key 'values' of 'layers' lists 1 formats for 2 kv heads; give one, or"));
  EXPECT_THAT(edited("[\"4t:min-mse\", \"16\"]", "\"4t\""),
              HasSubstr("f:8: element 1 of key 'layers' has one format for one tensor and a list"));
  EXPECT_THAT(
      edited("3t:g64:min-mse", "3t:g72:min-mse"),
      HasSubstr("f:8: element 1 of key 'layers' has an impossible recipe for kv head 1: keys: "
                "3 bits, group 72"));
  EXPECT_THAT(edited("4c:min-mse", "6c:min-mse"), HasSubstr("defined for 2 to 5 bits"));
  EXPECT_THAT(edited("4c:min-mse", "4c:centroids"), HasSubstr("1 bit uses the centroid rule"));
}

TEST(RecipeFileHostile, EveryTruncationIsRefused) {
  const std::string text = small_text;
  for (std::size_t size = 0; size + 2 < text.size(); ++size)
    EXPECT_FALSE(parse_recipe_file(text.substr(0, size), "f").ok()) << size;
  EXPECT_THAT(std::string(parse_recipe_file(
                              "{\"kvtilt_recipe\": 1, \"page_tokens\": 64, \"layers\": []}", "f")
                              .message()),
              HasSubstr("f:1: key 'layers' has no layers"));
}

TEST(RecipeFileHostile, WritesNothingThatCannotBeRead) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "f";
  const auto write = [&](auto edit) {
    RecipeFile file = small_file();
    edit(file);
    const Status status = write_recipe_file(path, file);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_FALSE(std::filesystem::exists(path));
    return std::string(status.message());
  };
  EXPECT_EQ(write([](RecipeFile& f) { f.page_tokens = 48; }),
            "page_tokens is 48, must be 32, 64 or 128");
  EXPECT_EQ(write([](RecipeFile& f) { f.shape.layers.clear(); }), "the shape has no layers");
  EXPECT_THAT(write([](RecipeFile& f) { f.shape.layers[0].key_dim = 12; }), HasSubstr("layer 0:"));
  EXPECT_THAT(write([](RecipeFile& f) { f.plan.recipes.pop_back(); }), HasSubstr("the plan has 2"));
  EXPECT_THAT(write([](RecipeFile& f) { f.plan.recipes[1][1].key.group = 72; }),
              HasSubstr("layer 1: keys: 3 bits, group 72"));
  EXPECT_EQ(write([](RecipeFile& f) { f.made_by = "\xff"; }), "made_by: '?' is not UTF-8");
  EXPECT_EQ(write([](RecipeFile& f) { f.budget = "\xff"; }), "budget: '?' is not UTF-8");
  EXPECT_EQ(read_recipe_file(path).code(), ErrorCode::FileAccess);
  EXPECT_EQ(write_recipe_file(folder.path() / "no" / "f", small_file()).code(),
            ErrorCode::FileAccess);
}

TEST(RecipeFileHostile, DoesNotFitAnotherModel) {
  const RecipeFile file = small_file();
  EXPECT_TRUE(check_fits(file, file.shape, 64).ok());
  CacheShape shape = file.shape;
  shape.layers[0].window = 256;
  shape.layers[2].key_dim = 64;
  EXPECT_TRUE(check_fits(file, shape, 64).ok());
  EXPECT_EQ(std::string(check_fits(file, file.shape, 32).message()),
            "the recipe file was made for pages of 64 tokens, the cache has 32");
  for (const auto field : {&LayerShape::kv_heads, &LayerShape::key_dim, &LayerShape::value_dim}) {
    shape = file.shape;
    shape.layers[1].*field = 8;
    EXPECT_THAT(std::string(check_fits(file, shape, 64).message()),
                HasSubstr("layer 1: the recipe file was made for 2 kv heads of 128 and 128"));
  }
  shape = file.shape;
  shape.layers.emplace_back();
  EXPECT_EQ(std::string(check_fits(file, shape, 64).message()),
            "the recipe file was made for 3 layers, the model has 4");
}

}  // namespace
}  // namespace kvtilt
