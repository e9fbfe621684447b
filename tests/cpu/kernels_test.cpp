// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/kernels.hpp>

#include "support/isas.hpp"

#include <gtest/gtest.h>

namespace kvtilt::cpu {
namespace {

template <class FormatList>
void expect_widths(const bool (&expected)[width_slots]) {
  for (const Isa isa : test::usable_isas()) {
    const Kernels* table = kernels<FormatList>(isa);
    ASSERT_NE(table, nullptr);
    EXPECT_EQ(table->isa, isa);
    for (int slot = 0; slot < width_slots; ++slot) {
      EXPECT_EQ(table->float_dot[slot] != nullptr, expected[slot]) << slot;
      const int widest = isa == Isa::Scalar ? 0 : 8;
      const bool integers = expected[slot] && slot != width_slot(half_bits) && slot <= widest;
      EXPECT_EQ(table->integer_dot[slot] != nullptr, integers) << slot;
      EXPECT_EQ(table->pack[slot] != nullptr, expected[slot]) << slot;
    }
    EXPECT_NE(table->contract_rows, nullptr);
    EXPECT_NE(table->absorb, nullptr);
    EXPECT_NE(table->scale, nullptr);
    EXPECT_NE(table->write_keys, nullptr);
    EXPECT_NE(table->write_values, nullptr);
    EXPECT_NE(table->exceeds, nullptr);
  }
}

TEST(Kernels, CoverTheWidthsOfTheirList) {
  expect_widths<AllFormats>({true, true, true, true, true, true, true, true, true});
  expect_widths<Formats<Keys<4>, Values<2>>>(
      {true, false, true, false, true, false, false, false, false});
  expect_widths<Formats<Keys<8, 3>, Values<3, 16>>>(
      {true, false, false, true, false, false, false, false, true});
}

TEST(Kernels, AlwaysServeTheTail) {
  expect_widths<Formats<Keys<>, Values<>>>(
      {true, false, false, false, false, false, false, false, false});
}

TEST(Kernels, AreTheSameTableEachTime) {
  for (const Isa isa : test::usable_isas())
    EXPECT_EQ(kernels<AllFormats>(isa), kernels<AllFormats>(isa));
}

TEST(Kernels, AreMissingWhereNotCompiled) {
  for (const Isa isa : all_isas)
    EXPECT_EQ(kernels<AllFormats>(isa) != nullptr, is_compiled(isa)) << to_string(isa);
}

TEST(Kernels, DifferBetweenInstructionSets) {
  if (test::usable_isas().size() < 2) GTEST_SKIP() << "one instruction set only";
  const Kernels* weak = kernels<AllFormats>(test::usable_isas()[0]);
  const Kernels* strong = kernels<AllFormats>(test::usable_isas()[1]);
  EXPECT_NE(weak->absorb, strong->absorb);
  for (int slot = 0; slot < width_slots; ++slot) {
    EXPECT_NE(weak->float_dot[slot], strong->float_dot[slot]) << slot;
    EXPECT_NE(weak->pack[slot], strong->pack[slot]) << slot;
  }
}

}  // namespace
}  // namespace kvtilt::cpu
