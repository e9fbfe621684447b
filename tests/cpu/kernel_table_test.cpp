// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/kernel_table.hpp>

#include <gtest/gtest.h>

#include <type_traits>

namespace kvtilt::cpu {
namespace {

TEST(KernelTable, GivesEveryWidthItsOwnSlot) {
  bool used[width_slots] = {};
  for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
    const int slot = width_slot(bits);
    ASSERT_GE(slot, 0);
    ASSERT_LT(slot, width_slots);
    EXPECT_FALSE(used[slot]) << bits;
    used[slot] = true;
  }
  for (const bool slot : used) EXPECT_TRUE(slot);
}

TEST(KernelTable, RowsLieAStrideApart) {
  float data[20] = {};
  const Rows<float> rows{data, 7};
  EXPECT_EQ(rows[0], data);
  EXPECT_EQ(rows[2], data + 14);
  EXPECT_EQ((Rows<const float>{data + 14, -7})[2], data);
}

TEST(KernelTable, IsPlainData) {
  static_assert(std::is_trivially_copyable_v<Kernels> && std::is_aggregate_v<Kernels>);
  SUCCEED();
}

}  // namespace
}  // namespace kvtilt::cpu
