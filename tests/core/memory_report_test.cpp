// SPDX-License-Identifier: MIT
#include <kvtilt/core/memory_report.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

TEST(MemoryReport, CountsEverythingInUseAndNothingReserved) {
  const MemoryReport report{1000, 200, 30, 4, 1 << 20, 100};
  EXPECT_EQ(report.bytes_in_use(), 1234u);
  EXPECT_DOUBLE_EQ(report.effective_bits(), 8.0 * 1234 / 100);
}

TEST(MemoryReport, AnEmptyCacheHasNoEffectiveBits) {
  EXPECT_EQ(MemoryReport{}.bytes_in_use(), 0u);
  EXPECT_EQ(MemoryReport{}.effective_bits(), 0.0);
  EXPECT_EQ((MemoryReport{0, 0, 0, 24, 4096, 0}.effective_bits()), 0.0);
}

}  // namespace
}  // namespace kvtilt
