// SPDX-License-Identifier: MIT
// kv_cache_threads_test.cpp shares pages between threads.
#include <kvtilt/cache/page_references.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt {
namespace {

TEST(PageReferences, TheLastToLeaveKeepsThePage) {
  std::uint32_t references = 1;
  EXPECT_FALSE(is_shared_page(&references));
  share_page(&references);
  share_page(&references);
  EXPECT_TRUE(is_shared_page(&references));
  EXPECT_FALSE(leave_page(&references));
  EXPECT_TRUE(is_shared_page(&references));
  EXPECT_FALSE(leave_page(&references));
  EXPECT_FALSE(is_shared_page(&references));
  EXPECT_TRUE(leave_page(&references));
  EXPECT_EQ(references, 1u);
}

}  // namespace
}  // namespace kvtilt
