// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/quant/presets.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::cuda {
namespace {

using ::testing::HasSubstr;

constexpr LayerShape shape{2, 64, 64};

std::vector<Recipe> resolved(const Recipe& recipe, int page_tokens = 64) {
  return resolve_recipes({recipe}, shape, page_tokens).value();
}

TEST(AttendChecks, AKernelFitsWhatItIsCompiledFor) {
  const auto k4v2 = resolved(presets::k4v2);
  EXPECT_TRUE((fits<PageTraits<4, 2, 64>>(shape, k4v2, 64)));
  EXPECT_FALSE((fits<PageTraits<4, 4, 64>>(shape, k4v2, 64))) << "other width";
  EXPECT_FALSE((fits<PageTraits<4, 2, 128>>(shape, k4v2, 64))) << "other head dimension";
  EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, resolved(presets::k4v2, 32), 32)))
      << "other page";
  for (const char* other : {"k4v2:g32,64", "k4v2:g64,32"})
    EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, resolved(parse_recipe(other).value()), 64)))
        << other;
  const auto k4tv2 = resolved(parse_recipe("k4tv2").value());
  const auto k4v2c = resolved(parse_recipe("k4v2c").value());
  EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, k4tv2, 64)));
  EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, k4v2c, 64)));
  EXPECT_TRUE((fits<TokenKeyTraits<4, 2, 64>>(shape, k4tv2, 64)));
  EXPECT_FALSE((fits<TokenKeyTraits<4, 2, 64>>(shape, k4v2, 64)));
  EXPECT_TRUE((fits<ChannelValueTraits<4, 2, 64>>(shape, k4v2c, 64)));
  EXPECT_FALSE((fits<ChannelValueTraits<4, 2, 64>>(shape, k4v2, 64)));
  EXPECT_TRUE((fits<HalfTraits<64>>(shape, resolved(presets::k16v16), 64)));
  EXPECT_TRUE((fits<GenericTraits<64>>(shape, resolved(presets::kivi4), 64)));
  EXPECT_FALSE((fits<GenericTraits<64>>(shape, k4v2, 63)));
}

TEST(AttendChecks, AMixedKernelFitsHeadsOfItsOwnRecipes) {
  using Mixed = MixedTraits<PageTraits<4, 2, 64>, PageTraits<8, 4, 64>>;
  const auto of = [](const Recipe& a, const Recipe& b) {
    return resolve_recipes({a, b}, shape, 64).value();
  };
  EXPECT_TRUE(fits<Mixed>(shape, of(presets::k4v2, presets::k8v4), 64));
  EXPECT_TRUE(fits<Mixed>(shape, resolved(presets::k8v4), 64));
  EXPECT_FALSE(fits<Mixed>(shape, of(presets::k4v2, presets::k3v2), 64));
  EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, of(presets::k4v2, presets::k8v4), 64)));
}

TEST(AttendChecks, NoKernelSaysWhatIsMissing) {
  const auto message = [](const LayerShape& of, const std::vector<Recipe>& recipes, int page) {
    const ServedLayers layers = ServedLayers::make(of, recipes, page).value();
    return std::string(no_kernel(layers, "add it").message());
  };
  EXPECT_THAT(message(shape, {presets::k4v2}, 64),
              HasSubstr("head dimensions 64 and 64 in pages of 64 tokens: add it"));
  EXPECT_THAT(message(shape, {presets::k4v2, presets::k8v4}, 64), HasSubstr("other heads'"));
  EXPECT_THAT(message({2, 80, 80}, {presets::per_channel_keys(3, 3)}, 32),
              HasSubstr("do not fill the words"));
}

TEST(AttendChecksHostile, LayersThatNoCacheHasAreRefused) {
  const auto message = [](const LayerShape& of, int page) {
    const auto layers = ServedLayers::make(of, {presets::k4v2}, page);
    EXPECT_EQ(layers.code(), ErrorCode::InvalidArgument);
    return std::string(layers.message());
  };
  EXPECT_THAT(message({0, 64, 64}, 64), HasSubstr("0 kv heads"));
  EXPECT_EQ(message({-1, 64, 64}, 64), "kv_heads is -1, must be 0 (no cache) to 1024");
  EXPECT_THAT(message({2, 64, 0}, 64), HasSubstr("value 0"));
  EXPECT_THAT(message({2, 64, 64, -5}, 64), HasSubstr("window is -5"));
  for (const int page : {-64, 0, 48, 63})
    EXPECT_THAT(message(shape, page), HasSubstr("must be 32, 64 or 128"));
}

/// The description of a layer with these recipes, without memory.
LayerView view_of(const std::vector<Recipe>& recipes) {
  const auto all = resolve_recipes(recipes, shape, 64).value();
  return describe_layer(shape, {64, 4, 128}, make_layer_layouts(shape, all, 64, 4));
}

TEST(AttendChecks, LayersAreServedWhosePagesAreReadAlike) {
  const ServedLayers k4v2 = ServedLayers::make(shape, {presets::k4v2}, 64).value();
  const auto minmax = [](Recipe recipe) {
    recipe.key.rule = recipe.value.rule = RangeRule::MinMax;
    return recipe;
  };
  const std::vector<std::vector<Recipe>> alike = {{presets::k4v2},
                                                  {presets::k4v2, presets::k4v2},
                                                  {parse_recipe("k4v2:g64,64").value()},
                                                  {minmax(presets::k4v2)}};
  for (const auto& recipes : alike) EXPECT_TRUE(k4v2.check(view_of(recipes)).ok());
  const Recipe k4v2c = parse_recipe("k4v2c").value();
  const std::vector<std::vector<Recipe>> others = {{presets::k8v4},
                                                   {presets::k2v2},
                                                   {presets::k16v16},
                                                   {k4v2c},
                                                   {parse_recipe("k4v2:g32,64").value()},
                                                   {presets::k4v2, presets::k8v4},
                                                   {presets::k4v2, k4v2c}};
  for (const auto& recipes : others) {
    const Status status = k4v2.check(view_of(recipes));
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << recipe_names(recipes);
    EXPECT_THAT(status.message(), HasSubstr("not those of k4v2:g64,64"));
  }
  const ServedLayers mixed = ServedLayers::make(shape, {presets::k4v2, presets::k8v4}, 64).value();
  EXPECT_TRUE(mixed.check(view_of({presets::k4v2, presets::k8v4})).ok());
  EXPECT_FALSE(mixed.check(view_of({presets::k8v4, presets::k4v2})).ok());
}

class LaunchChecksHostile : public ::testing::Test {
 protected:
  Status check(std::int64_t each = 2) const {
    return check_launch(served_, layer_, batch_, queries_, out_, options_, each);
  }

  float numbers_[1] = {};
  ServedLayers served_ = ServedLayers::make(shape, {presets::k4v2}, 64).value();
  LayerView layer_ = view_of({presets::k4v2});
  Batch batch_{nullptr, 3};
  TensorView queries_{numbers_, 6, 8, 64};
  MutableTensorView out_{numbers_, 6, 8, 64};
  DeviceAttendOptions options_;
};

TEST_F(LaunchChecksHostile, ALaunchSaysWhatCannotBeMeant) {
  EXPECT_TRUE(check().ok());
  batch_.count = 0;
  EXPECT_THAT(check().message(), HasSubstr("6 queries of 0 sequences"));
  batch_.count = -1;
  EXPECT_THAT(check().message(), HasSubstr("at most 1024 sequences, not -1"));
  batch_.count = max_attend_sequences + 1;
  EXPECT_FALSE(check().ok());
  batch_.count = 3;
  layer_.page_tokens = 32;
  EXPECT_THAT(check().message(), HasSubstr("in pages of 32; this is for"));
  layer_ = view_of({presets::k8v4});
  EXPECT_THAT(check().message(), HasSubstr("create one with the layer's own recipes"));
  layer_ = view_of({presets::k4v2});
  queries_.heads = 7;
  EXPECT_THAT(check().message(), HasSubstr("a multiple of 2 kv heads"));
  queries_.heads = 8;
  out_.dim = 32;
  EXPECT_THAT(check().message(), HasSubstr("the output is [6, 8, 32]"));
  out_.dim = 64;
  layer_.window = 10;
  options_.window = 20;
  EXPECT_THAT(check().message(), HasSubstr("window 20 is wider than the layer's 10"));
  options_.window = 0;
  const std::uint64_t tree[1] = {};
  options_.tree_mask = tree;
  EXPECT_TRUE(check(64).ok());
  EXPECT_THAT(check(65).message(), HasSubstr("at most 64 queries, not 65"));
  const std::int32_t tree_tokens[1] = {};
  options_.tree_tokens = tree_tokens;
  EXPECT_TRUE(check(64).ok());
  options_.tree_mask = nullptr;
  EXPECT_THAT(check().message(), HasSubstr("tree_tokens without a tree mask"));
}

TEST_F(LaunchChecksHostile, NothingAskedIsFine) {
  queries_ = {static_cast<const float*>(nullptr), 0, 8, 64};
  out_ = {static_cast<float*>(nullptr), 0, 8, 64};
  EXPECT_TRUE(check(0).ok());
  batch_.count = 0;
  EXPECT_TRUE(check(0).ok());
}

TEST(AttendChecksHostile, AWorkspaceHasItsBytesAligned) {
  alignas(16) std::byte memory[32];
  const std::span<std::byte> all(memory);
  EXPECT_TRUE(check_workspace(all, 32).ok());
  EXPECT_TRUE(check_workspace({}, 0).ok());
  EXPECT_THAT(check_workspace(all, 33).message(), HasSubstr("has 32 bytes, 33 are needed"));
  EXPECT_THAT(check_workspace(all.subspan(8), 8).message(), HasSubstr("not aligned to 16 bytes"));
  EXPECT_THAT(check_workspace({static_cast<std::byte*>(nullptr), 8}, 8).message(),
              HasSubstr("is null, with 8 bytes"));
}

TEST(AttendChecks, KvHeadsHaveAsManyQueryHeads) {
  const ServedLayers layers = ServedLayers::make(shape, {presets::k4v2}, 64).value();
  for (const int heads : {2, 4, 64}) EXPECT_TRUE(layers.takes(heads));
  for (const int heads : {-2, 0, 1, 3}) EXPECT_FALSE(layers.takes(heads));
  EXPECT_FALSE(ServedLayers{}.takes(4)) << "of an object that was not created";
}

}  // namespace
}  // namespace kvtilt::cuda
