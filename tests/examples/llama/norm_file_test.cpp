// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/norm_file.hpp>

namespace llama {
namespace {

using testing::HasSubstr;

TEST(NormFile, HoldsOneNormPerLayerAndTensor) {
  const TemporaryFolder folder;
  folder.write("norms.json", R"({"w_k": [3.5, 4], "w_v": [1, 2.25]})");
  const WeightNorms norms = read_norm_file(folder.path() / "norms.json", 4, 64);
  ASSERT_EQ(norms.layers.size(), 2U);
  EXPECT_TRUE(norms.one_norm);
  EXPECT_EQ(norms.shape.layers[1], (kvtilt::LayerShape{4, 64, 64, 0}));
  EXPECT_EQ(norms.layers[0].keys.frobenius, 3.5);
  EXPECT_EQ(norms.layers[1].values.spectral, 2.25);
  const auto error = [&](const char* text) {
    folder.write("norms.json", text);
    return error_of([&] { (void)read_norm_file(folder.path() / "norms.json", 4, 64); });
  };
  EXPECT_THAT(error(R"({"w_k": [1, 2], "w_v": [1]})"),
              HasSubstr("\"w_k\" lists 2 layers, \"w_v\" 1"));
  EXPECT_THAT(error(R"({"w_k": [1]})"), HasSubstr("w_v"));
  EXPECT_THAT(error(R"({"w_k": [1], "w_v": ["two"]})"), HasSubstr("two"));
  EXPECT_THAT(error(R"({"w_k": [1], "w_v": [0]})"), HasSubstr("not above 0"));
  EXPECT_THAT(error("[1"), HasSubstr("norms.json"));
}

}  // namespace
}  // namespace llama
