// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/output_rows.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda::detail {
namespace {

template <class T>
T converted(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else if constexpr (std::is_same_v<T, F16>)
    return to_f16(x);
  else
    return to_bf16(x);
}

/// Two tokens of two heads, `shift` elements into memory, with gaps between rows.
template <class T>
void expect_rows(int shift, std::int64_t stride, bool aligned) {
  alignas(16) T memory[64];
  const T untouched = converted<T>(-7.0f);
  for (T& element : memory) element = untouched;
  const MutableTensorView view = MutableTensorView(memory + shift, 2, 2, 8).with_strides(stride, 8);
  const OutputRows<T> rows(view, 0, 1);
  EXPECT_EQ(rows.aligned(), aligned);
  const float four[4] = {1.0f, 0.1f, -3.0f, 1e-3f};
  const float two[2] = {5.0f, 0.3f};
  rows.template store<4>(1, 4, four);
  rows.template store<2>(0, 2, two);
  for (int i = 0; i < 64; ++i) {
    T expected = untouched;
    const std::int64_t at = i - shift - 8;  // offset from the start of head 1
    if (at >= stride + 4 && at < stride + 8) expected = converted<T>(four[at - stride - 4]);
    if (at == 2 || at == 3) expected = converted<T>(two[at - 2]);
    EXPECT_EQ(memory[i], expected) << i;
  }
}

TEST(OutputRows, AreRoundedAndLeaveTheRestAlone) {
  expect_rows<float>(0, 20, true);
  expect_rows<float>(1, 20, false);
  expect_rows<F16>(0, 20, true);
  expect_rows<F16>(2, 20, false);
  expect_rows<F16>(0, 21, false);
  expect_rows<BF16>(4, 24, true);
  expect_rows<BF16>(3, 23, false);
}

}  // namespace
}  // namespace kvtilt::cuda::detail
