// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/page_list.hpp>

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::cuda {
namespace {

TEST(PageList, GivesPagesInOrder) {
  PageList list(3);
  EXPECT_EQ(list.pages(), 3);
  EXPECT_EQ(list.free_pages(), 3);
  for (std::int32_t page = 0; page < 3; ++page) EXPECT_EQ(list.take(), page);
  EXPECT_EQ(list.free_pages(), 0);
}

TEST(PageList, TheLastHolderFreesAPage) {
  PageList list(2);
  const std::int32_t page = list.take();
  list.share(page);
  EXPECT_EQ(list.references(page), 2u);
  list.release(page);
  EXPECT_EQ(list.free_pages(), 1);
  list.release(page);
  EXPECT_EQ(list.free_pages(), 2);
  EXPECT_EQ(list.references(page), 0u);
  EXPECT_EQ(list.take(), page);
}

}  // namespace
}  // namespace kvtilt::cuda
