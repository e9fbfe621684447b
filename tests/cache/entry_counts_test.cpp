// SPDX-License-Identifier: MIT
#include <kvtilt/cache/entry_counts.hpp>

#include <gtest/gtest.h>

namespace kvtilt {
namespace {

TEST(EntryCounts, KindsAreCountedApart) {
  EntryCounts counts;
  counts.add(PageKind::Tail, 1, 20);
  counts.add(PageKind::Tail, 1, 12);
  counts.add(PageKind::Sealed, 5, 300);
  counts.add(PageKind::Sealed, -1, -64);
  EXPECT_EQ(counts.entries(PageKind::Sinks), 0);
  EXPECT_EQ(counts.tokens(PageKind::Sinks), 0);
  EXPECT_EQ(counts.entries(PageKind::Sealed), 4);
  EXPECT_EQ(counts.tokens(PageKind::Sealed), 236);
  EXPECT_EQ(counts.entries(PageKind::Tail), 2);
  EXPECT_EQ(counts.tokens(PageKind::Tail), 32);
}

}  // namespace
}  // namespace kvtilt
