// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/supports.hpp>
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/quant/presets.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace kvtilt::cuda {
namespace {

using ::testing::HasSubstr;

constexpr LayerShape square(int dim) { return {2, dim, dim}; }

TEST(SupportsAttention, FastWhereTheListHasTheRecipe) {
  for (const auto& recipes :
       {std::vector<Recipe>{presets::k4v2}, {presets::k16v16}, {presets::k4v2, presets::k8v4}}) {
    EXPECT_EQ(supports_attention(square(128), recipes).value(), KernelKind::Fast);
    EXPECT_EQ(supports_prefill(square(128), recipes).value(), KernelKind::Fast);
  }
  for (const auto& recipes :
       {std::vector<Recipe>{presets::kivi2}, {presets::k4v2, presets::kivi2}}) {
    EXPECT_EQ(supports_attention(square(128), recipes).value(), KernelKind::Generic);
    EXPECT_EQ(supports_prefill(square(128), recipes).value(), KernelKind::Generic);
  }
  EXPECT_EQ(supports_attention(square(128), presets::k4v2, 32).value(), KernelKind::Generic);
}

/// supports() says whether a cache can hold the pages.
TEST(SupportsAttention, WhatTheListLacksIsRefusedThoughACacheHoldsIt) {
  using None = AttendKernels<>;
  using Own = AttendKernels<GenericTraits<96>, GenericTraits<576, 512>>;
  for (const Status& status : {supports_attention<None>(square(96), presets::k4v2).take_status(),
                               supports_prefill<None>(square(96), presets::k4v2).take_status(),
                               supports_attention<Own>(square(256), presets::k4v2).take_status()}) {
    EXPECT_EQ(status.code(), ErrorCode::Unsupported);
    EXPECT_THAT(status.message(), HasSubstr("KernelsFor<"));
  }
  EXPECT_TRUE(supports(square(96), presets::k4v2).ok());
  EXPECT_EQ(supports_attention<Own>(square(96), presets::k4v2).value(), KernelKind::Generic);
  EXPECT_EQ(supports_prefill<Own>(square(96), presets::k4v2).value(), KernelKind::Generic);
}

TEST(SupportsPrefill, ValuesHaveALimit) {
  using Own = AttendKernels<GenericTraits<576, 512>>;
  const LayerShape latent{1, 576, 512};
  EXPECT_EQ(supports_attention<Own>(latent, presets::k8v4).value(), KernelKind::Generic);
  EXPECT_THAT(supports_prefill<Own>(latent, presets::k8v4).message(),
              HasSubstr("values have at most 256 channels"));
}

TEST(SupportsPrefill, AFastDecodeMayHaveASlowPrefill) {
  using Own = AttendKernels<PageTraits<4, 4, 80>>;
  EXPECT_EQ(supports_attention<Own>(square(80), presets::k4v4).value(), KernelKind::Fast);
  EXPECT_EQ(supports_prefill<Own>(square(80), presets::k4v4).value(), KernelKind::Generic);
}

TEST(SupportsAttention, Latents) {
  const LayerShape latent = LayerShape::latent(512, 64);
  const Recipe once = *parse_recipe("k8");
  EXPECT_EQ(*supports_attention<LatentKernels<>>(latent, once), KernelKind::Generic);
  const auto unlisted = supports_attention<KernelsFor<576, 512>>(latent, once);
  EXPECT_EQ(unlisted.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(unlisted.message()), HasSubstr("LatentKernels<key_dim, value_dim>"));
  EXPECT_EQ(supports_attention<LatentKernels<>>({1, 576, 512}, presets::k8v8).code(),
            ErrorCode::Unsupported);
  const auto prefill = supports_prefill<LatentKernels<96, 64>>(LayerShape::latent(64, 32), once);
  EXPECT_EQ(prefill.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(prefill.message()), HasSubstr("not in the keys"));
}

TEST(SupportsAttentionHostile, LayersThatNoCacheHas) {
  for (const int page_tokens : {0, 48})
    EXPECT_EQ(supports_attention(square(128), presets::k4v2, page_tokens).code(),
              ErrorCode::InvalidArgument);
  EXPECT_EQ(supports_attention({0, 128, 128}, presets::k4v2).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(supports_prefill({2, 128, 1024}, presets::k4v2).code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(supports_attention(square(128), std::vector<Recipe>(3)).message(),
              HasSubstr("3 recipes for 2 kv heads"));
}

}  // namespace
}  // namespace kvtilt::cuda
