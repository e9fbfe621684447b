// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/quant/presets.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace kvtilt::cuda {
namespace {

using ::testing::HasSubstr;

constexpr LayerShape shape{2, 64, 64};

std::vector<Recipe> resolved(const Recipe& recipe, int page_tokens = 64) {
  return resolve_recipes(shape, {recipe}, page_tokens).value();
}

TEST(AttendChecks, RecipesAreOneForAllHeadsOrOneEach) {
  const std::vector<Recipe> three(3, presets::k4v2);
  EXPECT_THAT(resolve_recipes(shape, three, 64).message(), HasSubstr("3 recipes for 2 kv heads"));
  EXPECT_EQ(resolve_recipes(shape, {presets::k4v2, presets::k8v4}, 64)->size(), 2u);
  EXPECT_FALSE(resolve_recipes(shape, {presets::per_channel_keys(9, 2)}, 64).ok());
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
    return resolve_recipes(shape, {a, b}, 64).value();
  };
  EXPECT_TRUE(fits<Mixed>(shape, of(presets::k4v2, presets::k8v4), 64));
  EXPECT_TRUE(fits<Mixed>(shape, resolved(presets::k8v4), 64));
  EXPECT_FALSE(fits<Mixed>(shape, of(presets::k4v2, presets::k3v2), 64));
  EXPECT_FALSE((fits<PageTraits<4, 2, 64>>(shape, of(presets::k4v2, presets::k8v4), 64)));
}

TEST(AttendChecks, NoKernelSaysWhatIsMissing) {
  EXPECT_THAT(no_kernel(shape, resolved(presets::k4v2), 64, "add it").message(),
              HasSubstr("head dimensions 64 and 64 in pages of 64 tokens: add it"));
  EXPECT_THAT(no_kernel(shape, resolved(presets::k4v2), 63, "add it").message(),
              HasSubstr("32, 64 or 128"));
  constexpr LayerShape narrow{2, 80, 80};
  const auto odd = resolve_recipes(narrow, {presets::per_channel_keys(3, 3)}, 32).value();
  EXPECT_THAT(no_kernel(narrow, odd, 32, "add it").message(), HasSubstr("do not fill the words"));
}

class AttendChecksHostile : public ::testing::Test {
 protected:
  AttendChecksHostile() {
    layer_.kv_heads = 2;
    layer_.key_dim = layer_.value_dim = 64;
    layer_.page_tokens = 64;
  }
  Status check(std::int64_t each = 2) const {
    return check_launch(shape, 64, layer_, batch_, queries_, out_, options_, each, workspace_);
  }

  float numbers_[1] = {};
  LayerStorage layer_{};
  Batch batch_{nullptr, 3};
  TensorView queries_{numbers_, 6, 8, 64};
  MutableTensorView out_{numbers_, 6, 8, 64};
  DeviceAttendOptions options_;
  const void* workspace_ = numbers_;
};

TEST_F(AttendChecksHostile, ALaunchSaysWhatCannotBeMeant) {
  EXPECT_TRUE(check().ok());
  batch_.count = 0;
  EXPECT_THAT(check().message(), HasSubstr("1 to 1024 sequences, not 0"));
  batch_.count = max_attend_sequences + 1;
  EXPECT_FALSE(check().ok());
  batch_.count = 3;
  layer_.page_tokens = 32;
  EXPECT_THAT(check().message(), HasSubstr("in pages of 32; this is for"));
  layer_.page_tokens = 64;
  queries_.heads = 7;
  EXPECT_THAT(check().message(), HasSubstr("a multiple of 2 kv heads"));
  queries_.heads = 8;
  out_.dim = 32;
  EXPECT_THAT(check().message(), HasSubstr("the output is [6, 8, 32]"));
  out_.dim = 64;
  workspace_ = nullptr;
  EXPECT_THAT(check().message(), HasSubstr("workspace is null"));
  workspace_ = numbers_;
  layer_.window = 10;
  options_.window = 20;
  EXPECT_THAT(check().message(), HasSubstr("window 20 is wider than the layer's 10"));
  options_.window = 0;
  const std::uint64_t tree[1] = {};
  options_.tree_mask = tree;
  EXPECT_TRUE(check(64).ok());
  EXPECT_THAT(check(65).message(), HasSubstr("at most 64 queries, not 65"));
}

}  // namespace
}  // namespace kvtilt::cuda
