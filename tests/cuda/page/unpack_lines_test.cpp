// SPDX-License-Identifier: MIT
// Which tensors unpack_lines() takes, and that it writes their rows; unpack_test compares the bits
// of all paths.
#include <kvtilt/cuda/page/unpack_lines.hpp>

#include "support/emulated_threads.hpp"
#include "support/fragment_code.hpp"
#include "support/sealed_head.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::test {
namespace {

template <Role R>
bool fills(int bits, Granularity granularity, int group, int dim, int tokens) {
  const Format format{bits, granularity, group, RangeRule::MinMax};
  const HeadLayout head = head_layout({format, format}, dim, dim, tokens, 0);
  return cuda::fills_lines<R>(R == Role::Keys ? head.key : head.value);
}

TEST(UnpackLines, TakeWholeLinesWithTheirGroups) {
  constexpr Granularity channel = Granularity::PerChannel;
  constexpr Granularity token = Granularity::PerToken;
  EXPECT_TRUE((fills<Role::Keys>(4, channel, 64, 128, 64)));
  EXPECT_TRUE((fills<Role::Keys>(8, channel, 32, 64, 32)));
  EXPECT_FALSE((fills<Role::Keys>(4, channel, 16, 128, 64)));
  EXPECT_FALSE((fills<Role::Keys>(4, channel, 64, 96, 64)));
  EXPECT_FALSE((fills<Role::Keys>(4, token, 64, 128, 64)));
  EXPECT_FALSE((fills<Role::Keys>(3, channel, 64, 128, 64)));
  EXPECT_TRUE((fills<Role::Values>(2, token, 128, 128, 64)));
  EXPECT_TRUE((fills<Role::Values>(2, token, 64, 192, 32)));
  EXPECT_FALSE((fills<Role::Values>(2, token, 32, 128, 64)));
  EXPECT_FALSE((fills<Role::Values>(2, token, 128, 112, 64)));
  EXPECT_FALSE((fills<Role::Values>(2, channel, 64, 128, 64)));
}

/// Rows with gaps between them: every line is written, and nothing else.
template <Role R, class T>
void check_rows(int bits, int group, int dim, int tokens, int threads) {
  const bool keys = R == Role::Keys;
  const Format format{bits, keys ? Granularity::PerChannel : Granularity::PerToken, group,
                      RangeRule::MinMax};
  SealedHead head({format, format}, dim, dim, tokens, static_cast<std::uint64_t>(bits * dim));
  const TensorLayout& tensor = keys ? head.packed.key : head.packed.value;
  ASSERT_TRUE(cuda::fills_lines<R>(tensor));
  const std::int64_t stride = dim + 8;
  alignas(16) static T rows[128 * 264];
  for (T& element : rows) element.bits = 0x1234;
  MutableTensorView view(rows, tokens, 1, dim);
  view = view.with_strides(stride, dim);
  const std::size_t shared = static_cast<std::size_t>(threads / 32) * cuda::line_buffer_bytes;
  ASSERT_TRUE(emulate(1, threads, shared, [&](EmulatedThreads& block) {
    const cuda::detail::OutputRows<T> out(view, 0, 0);
    cuda::detail::unpack_lines<R>(block, tensor, head.expected.data(), out,
                                  block.shared() + block.warp() * cuda::line_buffer_bytes);
  }));
  for (int token = 0; token < tokens; ++token)
    for (int c = 0; c < stride; ++c) {
      T expected{0x1234};
      if (c < dim) {
        const int outer = keys ? token : c;
        const int inner = keys ? c : token;
        const int code = read_fragment_code(
            R, reinterpret_cast<const std::uint8_t*>(head.expected.data() + tensor.codes),
            tensor.matrix, bits, outer, inner);
        const F16* scales = tensor.scales(head.expected.data(), outer / group) + inner;
        const float value =
            to_float(scales[tensor.pitch()]) + to_float(scales[0]) * static_cast<float>(code);
        if constexpr (__is_same(T, F16))
          expected = to_f16(value);
        else
          expected = to_bf16(value);
      }
      ASSERT_EQ(rows[token * stride + c].bits, expected.bits)
          << "token " << token << ", channel " << c;
    }
}

TEST(UnpackLines, RowsAreThoseOfTheSpecification) {
  for (const int bits : {2, 4, 8})
    for (const int threads : {32, 96, 128}) {
      SCOPED_TRACE(bits);
      check_rows<Role::Keys, F16>(bits, 64, 128, 64, threads);
      check_rows<Role::Keys, BF16>(bits, 32, 256, 128, threads);
      check_rows<Role::Keys, F16>(bits, 32, 64, 32, threads);
      check_rows<Role::Values, F16>(bits, 128, 128, 64, threads);
      check_rows<Role::Values, BF16>(bits, 64, 192, 32, threads);
      check_rows<Role::Values, F16>(bits, 64, 64, 128, threads);
      if (testing::Test::HasFailure()) return;
    }
}

}  // namespace
}  // namespace kvtilt::test
