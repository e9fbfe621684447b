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
