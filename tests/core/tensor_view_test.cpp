// SPDX-License-Identifier: MIT
#include <kvtilt/core/tensor_view.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

TEST(TensorView, IsContiguousUnlessTold) {
  const std::vector<float> data(3 * 2 * 8);
  const TensorView view(data.data(), 3, 2, 8);
  EXPECT_EQ(view.type, ElementType::F32);
  EXPECT_EQ(view.token_stride, 16);
  EXPECT_EQ(view.head_stride, 8);
  EXPECT_EQ(view.row<float>(2, 1), data.data() + 40);
}

TEST(TensorView, KnowsItsElementType) {
  EXPECT_EQ(TensorView(static_cast<const float*>(nullptr), 1, 1, 8).type, ElementType::F32);
  EXPECT_EQ(TensorView(static_cast<const F16*>(nullptr), 1, 1, 8).type, ElementType::F16);
  EXPECT_EQ(TensorView(static_cast<const BF16*>(nullptr), 1, 1, 8).type, ElementType::BF16);
  for (const ElementType type : {ElementType::F32, ElementType::F16, ElementType::BF16}) {
    std::vector<std::byte> data(3 * 2 * 8 * element_bytes(type));
    const MutableTensorView view(data.data(), type, 3, 2, 8);
    EXPECT_EQ(view.type, type);
    EXPECT_EQ(view.address(2, 1), data.data() + 40 * element_bytes(type));
    EXPECT_EQ(TensorView(data.data(), type, 3, 2, 8).head_stride, 8);
  }
  EXPECT_EQ(std::string(to_string(ElementType::F32)), "f32");
  EXPECT_EQ(std::string(to_string(ElementType::F16)), "f16");
  EXPECT_EQ(std::string(to_string(ElementType::BF16)), "bf16");
}

TEST(TensorView, FitsHeadsBeforeTokens) {
  const std::vector<F16> data(2 * 3 * 8);  // [heads, tokens, dim]
  const TensorView view = TensorView(data.data(), 3, 2, 8).with_strides(8, 24);
  EXPECT_EQ(view.row<F16>(2, 1), data.data() + 40);
  EXPECT_EQ(view.tokens, 3);
}

TEST(TensorView, TakesNegativeStrides) {
  const std::vector<BF16> data(3 * 2 * 8);
  const TensorView view = TensorView(data.data() + 32, 3, 2, 8).with_strides(-16, 8);
  EXPECT_EQ(view.row<BF16>(2, 1), data.data() + 8);
}

TEST(TensorView, CountsBeyond32Bits) {
  const TensorView view =
      TensorView(static_cast<const F16*>(nullptr), 1, 1, 8).with_strides(std::int64_t{1} << 33, 0);
  EXPECT_EQ(view.token_stride * 3, std::int64_t{3} << 33);
}

TEST(TensorView, ElementsOfAnyTypeAreFloats) {
  std::vector<float> floats(3 * 2 * 8);
  std::vector<F16> halves(3 * 2 * 8);
  std::vector<BF16> brains(3 * 2 * 8);
  floats[45] = 0.1f;
  halves[45] = to_f16(-3.0f);
  brains[45] = to_bf16(1e30f);
  EXPECT_EQ(element(TensorView(floats.data(), 3, 2, 8), 2, 1, 5), 0.1f);
  EXPECT_EQ(element(TensorView(halves.data(), 3, 2, 8), 2, 1, 5), -3.0f);
  EXPECT_EQ(element(TensorView(brains.data(), 3, 2, 8), 2, 1, 5), to_float(to_bf16(1e30f)));
  EXPECT_EQ(element(TensorView(floats.data(), 3, 2, 8).with_strides(-8, 29), 2, 2, 3), 0.1f);
}

TEST(MutableTensorView, KnowsWhereRowsOfAnyTypeBegin) {
  std::vector<float> floats(3 * 2 * 8);
  std::vector<F16> halves(3 * 2 * 8);
  std::vector<BF16> brains(3 * 2 * 8);
  const MutableTensorView view(floats.data(), 3, 2, 8);
  EXPECT_EQ(static_cast<void*>(view.address(2, 1)), floats.data() + 40);
  EXPECT_EQ(static_cast<void*>(MutableTensorView(halves.data(), 3, 2, 8).address(2, 1)),
            halves.data() + 40);
  EXPECT_EQ(static_cast<void*>(MutableTensorView(brains.data(), 3, 2, 8).address(1, 0)),
            brains.data() + 16);
  const MutableTensorView backward =
      MutableTensorView(halves.data() + 32, 3, 2, 8).with_strides(-16, 8);
  EXPECT_EQ(static_cast<void*>(backward.address(2, 1)), halves.data() + 8);
}

TEST(MutableTensorView, CanBeRead) {
  std::vector<F16> data(3 * 2 * 8);
  const TensorView view = MutableTensorView(data.data(), 3, 2, 8).with_strides(8, 24);
  EXPECT_EQ(view.type, ElementType::F16);
  EXPECT_EQ(view.row<F16>(1, 1), data.data() + 32);
}

TEST(OutputView, IsContiguousUnlessTold) {
  std::vector<float> data(3 * 2 * 8);
  std::vector<float> lse(6);
  const OutputView view(data.data(), 3, 2, 8, lse.data());
  EXPECT_EQ(view.row(2, 1), data.data() + 40);
  EXPECT_EQ(view.lse, lse.data());
  EXPECT_EQ(view.with_strides(8, 24).row(1, 1), data.data() + 32);
  EXPECT_EQ(OutputView(data.data(), 3, 2, 8).lse, nullptr);
}

}  // namespace
}  // namespace kvtilt
