// SPDX-License-Identifier: MIT
// turn.inl, through the kernel table of every instruction set, against unpack_value() of the keys.
#include <kvtilt/core/half.hpp>
#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/page/unpack.hpp>

#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace kvtilt {
namespace {

using test::Block;
using test::Extents;
using test::Random;

void expect_turned(const Format& format, Extents extents, int value_dim) {
  const HeadLayout head = head_layout({format, in_keys}, extents.dim, value_dim, extents.tokens, 0);
  const TensorLayout values = cpu::turned_layout(head.key, value_dim);
  Block keys(head.key.end());
  Random random(static_cast<std::uint64_t>(format.bits + value_dim));
  test::fill_tensor(random, Role::Keys, head.key, 0, extents.tokens, keys.data());
  for (const test::KernelTable& table : test::kernel_tables()) {
    Block turned(values.end(), 0xcd);
    table.kernels->turn[cpu::width_slot(format.bits)](head.key, keys.data(), values, turned.data());
    ASSERT_TRUE(turned.guards_are_whole());
    for (int token = 0; token < extents.tokens; ++token)
      for (int channel = 0; channel < value_dim; ++channel)
        ASSERT_EQ(bit_cast<std::uint32_t>(unpack_value(values, turned.data(), channel, token)),
                  bit_cast<std::uint32_t>(unpack_value(head.key, keys.data(), token, channel)))
            << table.name << ", " << test::to_string(format, extents) << ", value_dim " << value_dim
            << ": token " << token << ", channel " << channel;
  }
}

/// One test per width, so that a failure shows the width.
class TurnAgreement : public testing::TestWithParam<int> {};

TEST_P(TurnAgreement, EveryValueIsThatOfItsKey) {
  for (const Extents extents : test::all_extents())
    for (const Format& format : test::formats_of(GetParam(), extents))
      for (const int value_dim : {8, 24, 64, 72, 512, extents.dim})
        if (value_dim <= extents.dim) expect_turned(format, extents, value_dim);
}

INSTANTIATE_TEST_SUITE_P(Widths, TurnAgreement, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16));

TEST(Turn, TakesTheSinksOfAnyLength) {
  for (const int tokens : {16, 48, 1024}) expect_turned(Format{}, {72, tokens}, 40);
}

}  // namespace
}  // namespace kvtilt
