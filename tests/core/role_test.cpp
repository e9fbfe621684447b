// SPDX-License-Identifier: MIT
#include <kvtilt/core/role.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

TEST(Role, HasAName) {
  EXPECT_STREQ(to_string(Role::Keys), "keys");
  EXPECT_STREQ(to_string(Role::Values), "values");
}

}  // namespace
}  // namespace kvtilt
