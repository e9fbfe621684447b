// SPDX-License-Identifier: MIT
// unpack.inl, through the kernel table of every instruction set, against unpack_value().
#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/page/unpack.hpp>

#include "support/float_modes.hpp"
#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::Block;
using test::Extents;
using test::Random;

/// The output: a [tokens, heads, dim] view somewhere inside a vector of bytes.
struct Destination {
  ElementType type;
  int heads;
  int gap;        ///< elements between heads
  bool backward;  ///< tokens in descending order

  [[nodiscard]] MutableTensorView view(std::vector<std::byte>& bytes, int tokens, int dim) const {
    const std::ptrdiff_t head_stride = dim + gap;
    const std::ptrdiff_t token_stride = heads * head_stride;
    const std::ptrdiff_t margin = 40;
    bytes.assign(static_cast<std::size_t>(tokens * token_stride + 2 * margin) * 4, std::byte{0x5a});
    MutableTensorView rows(static_cast<float*>(nullptr), tokens, heads, dim);
    rows.type = type;
    const std::ptrdiff_t start = margin + (backward ? (tokens - 1) * token_stride : 0);
    rows.data = bytes.data() + start * static_cast<std::ptrdiff_t>(element_bytes(type));
    return rows.with_strides(backward ? -token_stride : token_stride, head_stride);
  }
};

void store_element(float value, ElementType type, std::byte* to) {
  if (type == ElementType::F32) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = type == ElementType::F16 ? to_f16(value).bits : to_bf16(value).bits;
  std::memcpy(to, &bits, sizeof bits);
}

/// Unpacks the slots `live` with every kernel: all bytes must equal those of unpack_value(), and
/// bytes around the rows must stay untouched.
void expect_unpacked(Random& random, Role role, const TensorLayout& tensor, std::size_t bytes,
                     cpu::Range live, const Destination& to, const std::string& what) {
  Block block(bytes, 0xff);
  test::fill_tensor(random, role, tensor, live.first, live.last, block.data());
  const bool keys = role == Role::Keys;
  const int dim = keys ? tensor.matrix.inner : tensor.matrix.outer;
  const int count = live.last - live.first;
  const int head = to.heads - 1;
  std::vector<std::byte> expected;
  const MutableTensorView wanted = to.view(expected, count + 3, dim);
  for (int i = 0; i < count; ++i)
    for (int channel = 0; channel < dim; ++channel) {
      const int token = live.first + i;
      const float value =
          unpack_value(tensor, block.data(), keys ? token : channel, keys ? channel : token);
      store_element(
          value, to.type,
          wanted.address(2 + i, head) + static_cast<std::size_t>(channel) * element_bytes(to.type));
    }
  for (const test::KernelTable& table : test::kernel_tables()) {
    std::vector<std::byte> got;
    const MutableTensorView rows = to.view(got, count + 3, dim);
    table.kernels->unpack(role, tensor, block.data(), live.first, rows, {2, count, head});
    ASSERT_EQ(got, expected) << table.name << ": " << what << ", slots " << live.first << " to "
                             << live.last << ", " << to_string(to.type);
  }
}

Destination random_destination(Random& random) {
  return {static_cast<ElementType>(random.below(3)), random.between(1, 3), random.below(4),
          random.chance(3)};
}

cpu::Range random_slots(Random& random, int tokens) {
  const int first = random.below(tokens);
  return {first, random.between(first, tokens)};
}

/// One test per width, so that a failure shows the width.
class UnpackAgreement : public testing::TestWithParam<int> {
 protected:
  Random random_{static_cast<std::uint64_t>(GetParam())};

  void expect_format(const Format& format, Extents extents) {
    const HeadLayout head = test::layout_of(format, extents);
    const std::string what = test::to_string(format, extents);
    for (const Role role : {Role::Keys, Role::Values}) {
      const TensorLayout& tensor = role == Role::Keys ? head.key : head.value;
      expect_unpacked(random_, role, tensor, head.bytes(), {0, extents.tokens},
                      {ElementType::F32, 1, 0, false}, what);
      for (int round = 0; round < 4; ++round)
        expect_unpacked(random_, role, tensor, head.bytes(), random_slots(random_, extents.tokens),
                        random_destination(random_), what);
    }
  }
};

TEST_P(UnpackAgreement, GivesTheBitsOfTheSpecification) {
  for (const Extents extents : test::all_extents())
    for (const Format& format : test::formats_of(GetParam(), extents))
      expect_format(format, extents);
}

TEST_P(UnpackAgreement, RoundsFloatsToNearestInEveryMode) {
  for (const test::FloatMode mode : test::all_float_modes) {
    const test::FloatModeGuard guard(mode);
    for (const Format& format : test::formats_of(GetParam(), {72, 32}))
      expect_format(format, {72, 32});
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, UnpackAgreement, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16));

/// Every fp16 number, -0 included, is unpacked from 16 bits unchanged, and to the nearest bf16.
TEST(UnpackExhaustive, SixteenBits) {
  const Extents extents{512, 128};
  const HeadLayout head = test::layout_of(Format{}, extents);
  Block block(head.bytes());
  for (int i = 0; i < 65536; ++i) {
    const F16 half{static_cast<std::uint16_t>((i & 0x7c00) == 0x7c00 ? 0 : i)};
    test::halves(block.data(), head.key)[i] = test::halves(block.data(), head.value)[i] = half;
  }
  for (const test::KernelTable& table : test::kernel_tables()) {
    std::vector<F16> halves(65536);
    std::vector<BF16> brains(65536);
    for (const Role role : {Role::Keys, Role::Values}) {
      const TensorLayout& tensor = role == Role::Keys ? head.key : head.value;
      table.kernels->unpack(role, tensor, block.data(), 0,
                            MutableTensorView(halves.data(), 128, 1, 512), {0, 128, 0});
      table.kernels->unpack(role, tensor, block.data(), 0,
                            MutableTensorView(brains.data(), 128, 1, 512), {0, 128, 0});
      for (int token = 0; token < 128; ++token)
        for (int channel = 0; channel < 512; ++channel) {
          const std::size_t at = static_cast<std::size_t>(token * 512 + channel);
          const F16 stored = test::halves(
              block.data(),
              tensor)[role == Role::Keys ? half_position(tensor.matrix, token, channel)
                                         : half_position(tensor.matrix, channel, token)];
          ASSERT_EQ(halves[at], stored) << table.name;
          ASSERT_EQ(brains[at], to_bf16(to_float(stored))) << table.name;
        }
    }
  }
}

}  // namespace
}  // namespace kvtilt
