// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/kernels.hpp>

#include "support/all_formats.hpp"
#include "support/kernel_tables.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace kvtilt::cpu {
namespace {

/// The widest codes for which an instruction set has integer dot products; 0 if none.
int widest_integer_dot(Isa isa) {
  switch (isa) {
    case Isa::Avx2:
    case Isa::AvxVnni:
    case Isa::Avx512:
      return 8;
    case Isa::Neon:
    case Isa::NeonDotprod:
      return 4;
    default:
      return 0;
  }
}

template <class FormatList>
void expect_widths(const bool (&expected)[width_slots]) {
  for (const Isa isa : test::usable_isas()) {
    const Kernels* table = kernels<FormatList>(isa);
    ASSERT_NE(table, nullptr);
    EXPECT_EQ(table->isa, isa);
    for (int slot = 0; slot < width_slots; ++slot) {
      EXPECT_EQ(table->float_dot[slot] != nullptr, expected[slot]) << slot;
      const bool integers =
          expected[slot] && slot != width_slot(half_bits) && slot <= widest_integer_dot(isa);
      EXPECT_EQ(table->integer_dot[slot] != nullptr, integers) << slot;
      EXPECT_EQ(table->pack[slot] != nullptr, expected[slot]) << slot;
    }
    EXPECT_NE(table->begin_contraction, nullptr);
    EXPECT_NE(table->finish_contraction, nullptr);
    EXPECT_NE(table->update_softmax, nullptr);
    EXPECT_NE(table->scale, nullptr);
    EXPECT_NE(table->write_keys, nullptr);
    EXPECT_NE(table->write_values, nullptr);
    EXPECT_NE(table->exceeds, nullptr);
  }
}

TEST(Kernels, CoverTheWidthsOfTheirList) {
  expect_widths<AllFormats>({true, true, true, true, true, true, true, true, true});
  expect_widths<test::FewFormats>({true, false, true, false, true, false, false, false, false});
  expect_widths<test::UnequalFormats>({true, false, false, true, false, false, false, false, true});
}

TEST(Kernels, AlwaysServeTheTail) {
  expect_widths<test::NoFormats>({true, false, false, false, false, false, false, false, false});
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
  const std::vector<test::KernelTable> tables = test::kernel_tables();
  if (tables.size() < 2) GTEST_SKIP() << "one instruction set only";
  for (std::size_t i = 1; i < tables.size(); ++i) {
    const Kernels* weak = tables[i - 1].kernels;
    const Kernels* strong = tables[i].kernels;
    for (int slot = 1; slot < width_slots; ++slot) {
      if (weak->integer_dot[slot] == nullptr) continue;
      EXPECT_NE(weak->integer_dot[slot], strong->integer_dot[slot]) << slot;
    }
    if (strong->isa == Isa::AvxVnni) continue;  // all its other kernels are AVX2's
    EXPECT_NE(weak->update_softmax, strong->update_softmax);
    for (int slot = 0; slot < width_slots; ++slot) {
      EXPECT_NE(weak->float_dot[slot], strong->float_dot[slot]) << slot;
      EXPECT_NE(weak->pack[slot], strong->pack[slot]) << slot;
    }
  }
}

/// Where AVX-512 is available, the agreement tests of this folder also run AVX-VNNI's arithmetic.
TEST(Kernels, OfAvxVnniAreTestedByAvx512) {
  const Kernels* table = test::avx_vnni_by_avx512();
  if (table == nullptr) GTEST_SKIP() << "this machine does not run avx512";
  for (int slot = 1; slot < width_slots; ++slot) EXPECT_NE(table->integer_dot[slot], nullptr);
  if (check_isa(Isa::AvxVnni).ok()) GTEST_SKIP() << "this machine runs avx_vnni itself";
  EXPECT_EQ(test::kernel_tables().back().kernels, table);
}

}  // namespace
}  // namespace kvtilt::cpu
