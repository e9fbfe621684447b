// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <llama/table.hpp>

namespace llama {
namespace {

TEST(Table, AlignsColumns) {
  EXPECT_EQ(format_table({{"recipe", "bits"}, {"k4v2", "3"}, {"k16v16", "16.00"}}),
            "recipe   bits\n"
            "k4v2        3\n"
            "k16v16  16.00\n");
  EXPECT_EQ(format_table({}), "");
}

TEST(Table, WritesAnErrorWithTheExponentOfItsValue) {
  EXPECT_EQ(format_scientific(1.524e-4, 1.12e-5, 2), "1.52e-04 +- 0.11e-04");
  EXPECT_EQ(format_scientific(9.996e-5, 2e-6, 2), "1.00e-04 +- 0.02e-04");  // rounded up
  EXPECT_EQ(format_scientific(2e-10, 3e-9, 1), "2.0e-10 +- 30.0e-10");
  EXPECT_EQ(format_scientific(12, 0.5, 1), "1.2e+01 +- 0.1e+01");
  EXPECT_EQ(format_scientific(1.524e-4, std::nullopt, 2), "1.52e-04 +- -");
}

TEST(Table, SeparatesThousands) {
  EXPECT_EQ(format_number(0, 0), "0");
  EXPECT_EQ(format_number(999, 0), "999");
  EXPECT_EQ(format_number(1000, 0), "1,000");
  EXPECT_EQ(format_number(1234567.891, 2), "1,234,567.89");
  EXPECT_EQ(format_number(-1234, 1), "-1,234.0");
  EXPECT_EQ(format_number(-123, 0), "-123");
}

}  // namespace
}  // namespace llama
