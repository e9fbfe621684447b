// SPDX-License-Identifier: MIT
#include <kvtilt/core/config.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

KVTILT_HD constexpr int twice(int x) { return 2 * x; }

TEST(Config, HasAVersion) {
  static_assert(KVTILT_VERSION_MAJOR >= 0 && KVTILT_VERSION_MINOR >= 0 &&
                KVTILT_VERSION_PATCH >= 0);
  EXPECT_GT(KVTILT_VERSION_MAJOR + KVTILT_VERSION_MINOR + KVTILT_VERSION_PATCH, 0);
}

TEST(Config, MarksHostCodeWithNothing) {
  static_assert(twice(2) == 4);
  SUCCEED();
}

TEST(Config, KnowsTheArchitecture) {
#if defined(__x86_64__)
  EXPECT_EQ(KVTILT_X86, 1);
#else
  EXPECT_EQ(KVTILT_X86, 0);
#endif
#if defined(__aarch64__)
  EXPECT_EQ(KVTILT_ARM64, 1);
#else
  EXPECT_EQ(KVTILT_ARM64, 0);
#endif
}

}  // namespace
}  // namespace kvtilt
