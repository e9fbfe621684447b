// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/quant/presets.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace kvtilt::cuda {
namespace {

using testing::HasSubstr;

TEST(DeviceOptions, NamesWhatIsWrong) {
  EXPECT_TRUE(check_options({}).ok());
  const auto message = [](auto change) {
    CacheOptions options;
    change(options);
    const Status status = check_options(options);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message([](auto& o) { o.page_tokens = 48; }), HasSubstr("page_tokens is 48"));
  EXPECT_THAT(message([](auto& o) { o.sink_tokens = -1; }), HasSubstr("sink_tokens is -1"));
  EXPECT_THAT(message([](auto& o) { o.recent_tokens = 65537; }),
              HasSubstr("recent_tokens is 65537"));
  EXPECT_THAT(message([](auto& o) { o.max_sequences = 0; }), HasSubstr("max_sequences is 0"));
  EXPECT_THAT(message([](auto& o) { o.token_capacity = 0; }), HasSubstr("token_capacity is 0"));
  EXPECT_THAT(message([](auto& o) { o.max_sequence_tokens = -5; }),
              HasSubstr("max_sequence_tokens is -5"));
}

TEST(DeviceSupports, EveryWidthAtUsualHeadDimensions) {
  for (const int dim : {64, 80, 96, 112, 128, 192, 256, 576})
    for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
      Recipe recipe;
      recipe.key.bits = recipe.value.bits = bits;
      recipe.key.granularity = Granularity::PerChannel;
      recipe.key.rule = recipe.value.rule = default_rule(bits);
      const Status status = supports({2, dim, dim}, recipe, 64);
      EXPECT_TRUE(status.ok()) << dim << " " << bits << " " << status.message();
    }
}

TEST(DeviceSupports, SaysWhyNot) {
  const Status status = supports({2, 72, 72}, presets::k4v2, 64);
  EXPECT_EQ(status.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(status.message()), HasSubstr("multiples of 16"));
  EXPECT_EQ(supports({2, 64, 64}, presets::k4v2, 48).code(), ErrorCode::InvalidArgument);
  EXPECT_TRUE(supports(LayerShape::latent(512, 64), *parse_recipe("k8")).ok());
  EXPECT_THAT(std::string(supports(LayerShape::latent(40, 24), *parse_recipe("k8")).message()),
              HasSubstr("value_dim is 40"));
  EXPECT_TRUE(supports({}, presets::k4v2).ok());
}

}  // namespace
}  // namespace kvtilt::cuda
