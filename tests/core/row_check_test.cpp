// SPDX-License-Identifier: MIT
#include <kvtilt/core/row_check.hpp>

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvtilt::detail {
namespace {

constexpr LayerShape layer{2, 4, 8};

/// Valid rows of a layer, which each test breaks in one way.
class RowCheckTest : public ::testing::Test {
 protected:
  std::vector<float> data_ = std::vector<float>(3 * 2 * 8);
  TensorView keys_{data_.data(), 3, 2, 4};
  TensorView values_{data_.data(), 3, 2, 8};
};

TEST_F(RowCheckTest, TakesRowsOfTheLayer) {
  EXPECT_TRUE(check_rows(layer, keys_, values_, 5).ok());
  keys_.tokens = values_.tokens = 0;
  keys_.data = values_.data = nullptr;
  EXPECT_TRUE(check_rows(layer, keys_, values_, 5).ok()) << "no rows need no memory";
}

TEST_F(RowCheckTest, NamesTheLayerAndBothShapes) {
  values_.dim = 4;
  const Status numbered = check_rows(layer, keys_, values_, 5);
  EXPECT_EQ(numbered.code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(numbered.message(),
            "layer 5: keys are [3, 2, 4] and values [3, 2, 4]; expected [n, 2, 4] and [n, 2, 8]");
  EXPECT_EQ(check_rows(layer, keys_, values_, unnumbered_layer).message(),
            "keys are [3, 2, 4] and values [3, 2, 4]; expected [n, 2, 4] and [n, 2, 8]");
}

TEST_F(RowCheckTest, RefusesOtherNumbersOfTokensHeadsAndMissingMemory) {
  const auto refused = [&](const TensorView& keys, const TensorView& values) {
    return check_rows(layer, keys, values, 0).code() == ErrorCode::InvalidArgument;
  };
  TensorView wrong = keys_;
  wrong.tokens = 2;
  EXPECT_TRUE(refused(wrong, values_)) << "fewer keys than values";
  wrong = keys_;
  wrong.heads = 1;
  EXPECT_TRUE(refused(wrong, values_));
  wrong = values_;
  wrong.data = nullptr;
  EXPECT_TRUE(refused(keys_, wrong));
  keys_.tokens = values_.tokens = -1;
  EXPECT_TRUE(refused(keys_, values_));
}

TEST_F(RowCheckTest, ChecksKeysAloneWhereValuesAreInThem) {
  LayerShape latents = layer;
  latents.values_in_keys = true;
  const auto refusal = [&](const TensorView& keys, const TensorView& values = {}) {
    return std::string(check_rows(latents, keys, values, 5).message());
  };
  EXPECT_EQ(refusal(keys_), "");
  EXPECT_EQ(refusal(keys_, values_),
            "layer 5: values are given, [3, 2, 8], but are in this layer's keys: pass {}");
  TensorView wrong = keys_;
  wrong.tokens = -1;
  EXPECT_EQ(refusal(wrong), "layer 5: keys are [-1, 2, 4]; expected [n, 2, 4]");
  wrong = keys_;
  wrong.heads = 1;
  EXPECT_EQ(refusal(wrong), "layer 5: keys are [3, 1, 4]; expected [n, 2, 4]");
  wrong = keys_;
  wrong.data = nullptr;
  EXPECT_EQ(refusal(wrong), "layer 5: keys are null");
  wrong = keys_;
  wrong.type = static_cast<ElementType>(7);
  EXPECT_EQ(refusal(wrong),
            "layer 5: keys have element type 7, which is none of f32 (0), f16 (1), bf16 (2)");
}

TEST_F(RowCheckTest, CountsWantedRows) {
  EXPECT_EQ(check_wanted_rows(layer, keys_, values_, 0).value(), 3);
  EXPECT_EQ(check_wanted_rows(layer, keys_, {}, 0).value(), 3);
  EXPECT_EQ(check_wanted_rows(layer, {}, values_, 0).value(), 3);
  EXPECT_EQ(check_wanted_rows(layer, {}, {}, 0).value(), 0);
}

TEST_F(RowCheckTest, RefusesTypesThatNoElementHas) {
  const TensorView of_seven(data_.data(), static_cast<ElementType>(7), 3, 2, 4);
  EXPECT_EQ(check_rows(layer, of_seven, values_, 5).message(),
            "layer 5: keys have element type 7, which is none of f32 (0), f16 (1), bf16 (2)");
  values_.type = static_cast<ElementType>(3);
  EXPECT_FALSE(check_rows(layer, keys_, values_, 5).ok());
  EXPECT_FALSE(check_queries(layer, of_seven, 3, 2, 8, data_.data()).ok());
  EXPECT_TRUE(check_queries(layer, keys_, 3, 2, 8, data_.data()).ok());
  EXPECT_FALSE(check_wanted_rows(layer, of_seven, {}, 0).ok());
  EXPECT_FALSE(check_wanted_rows(layer, {}, values_, 0).ok());
}

TEST_F(RowCheckTest, RefusesWantedRowsOfAnotherShape) {
  values_.tokens = 2;
  EXPECT_FALSE(check_wanted_rows(layer, keys_, values_, 0).ok()) << "other numbers of tokens";
  values_.tokens = 3;
  values_.data = nullptr;
  const Result<std::int64_t> none = check_wanted_rows(layer, {}, values_, 7);
  ASSERT_FALSE(none.ok()) << "rows without memory";
  EXPECT_TRUE(none.message().starts_with("layer 7: keys go to [0, 0, 0]")) << none.message();
  keys_.tokens = -1;
  EXPECT_FALSE(check_wanted_rows(layer, keys_, {}, 0).ok());
}

}  // namespace
}  // namespace kvtilt::detail
