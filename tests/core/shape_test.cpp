// SPDX-License-Identifier: MIT
#include <kvtilt/core/shape.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

TEST(Shape, UniformRepeatsOneLayer) {
  const CacheShape shape = CacheShape::uniform(3, 8, 128);
  ASSERT_EQ(shape.layers.size(), 3u);
  for (const LayerShape& layer : shape.layers) EXPECT_EQ(layer, (LayerShape{8, 128, 128, 0}));
  EXPECT_EQ(shape.layers[0].elements_per_token(), 2048u);
  EXPECT_TRUE(check_shape(shape).ok());
}

TEST(Shape, CountsKeysAndValuesOfUnequalLength) {
  EXPECT_EQ((LayerShape{2, 192, 128, 0}).elements_per_token(), 640u);
  EXPECT_EQ((LayerShape{}).elements_per_token(), 0u);
}

TEST(Shape, AcceptsEveryMultipleOfEightUpTo576) {
  for (int dim = -8; dim <= 600; ++dim) {
    const bool good = dim >= 8 && dim <= 576 && dim % 8 == 0;
    EXPECT_EQ(check_shape(LayerShape{1, dim, 64, 0}, 0).ok(), good) << dim;
    EXPECT_EQ(check_shape(LayerShape{1, 64, dim, 0}, 0).ok(), good) << dim;
  }
}

TEST(Shape, LeavesDimensionsOfLayersWithoutCacheAlone) {
  EXPECT_TRUE(check_shape(LayerShape{0, -1, 7, 0}, 0).ok());
}

TEST(ShapeHostile, RefusesWhatCannotBeMeant) {
  EXPECT_FALSE(check_shape(CacheShape{}).ok());
  EXPECT_FALSE(check_shape(CacheShape::uniform(-1, 8, 64)).ok());
  EXPECT_FALSE(check_shape(LayerShape{-1, 64, 64, 0}, 0).ok());
  EXPECT_TRUE(check_shape(LayerShape{max_kv_heads, 64, 64, 0}, 0).ok());
  EXPECT_FALSE(check_shape(LayerShape{max_kv_heads + 1, 64, 64, 0}, 0).ok());
  EXPECT_FALSE(check_shape(LayerShape{1, 64, 64, -1}, 0).ok());
  EXPECT_FALSE(check_shape(LayerShape{INT_MAX, INT_MAX, INT_MIN, INT_MIN}, 0).ok());
}

TEST(Shape, NamesTheLayerAndTheNumber) {
  CacheShape shape = CacheShape::uniform(4, 8, 64);
  shape.layers[2].key_dim = 100;
  const Status status = check_shape(shape);
  EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 2"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("100"));
  EXPECT_THAT(std::string(check_shape(LayerShape{2000, 64, 64, 0}, 5).message()),
              HasSubstr("layer 5: kv_heads is 2000"));
  EXPECT_THAT(std::string(check_shape(LayerShape{1, 64, 64, -3}, 5).message()), HasSubstr("-3"));
  EXPECT_EQ(check_shape(LayerShape{2000, 64, 64, 0}, unnumbered_layer).message(),
            "kv_heads is 2000, must be 0 (no cache) to 1024");
  EXPECT_EQ(in_layer(3, status).message().substr(0, 9), "layer 3: ");
  EXPECT_EQ(in_layer(3, status).code(), ErrorCode::InvalidArgument);
}

}  // namespace
}  // namespace kvtilt
