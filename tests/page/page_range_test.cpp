// SPDX-License-Identifier: MIT
#include <kvtilt/page/page_range.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using Range = std::pair<std::int64_t, std::int64_t>;

Range nearest(const std::vector<PageRange>& pages, std::int64_t from, std::int64_t to) {
  const PageRange range = nearest_pages(
      pages.size(), [&](std::size_t i) { return pages[i]; }, from, to);
  return {range.from, range.to};
}

TEST(PageRange, NearestPagesBeginAndEndWherePagesDo) {
  const std::vector<PageRange> pages = {{4, 36}, {36, 68}, {68, 90}, {122, 154}, {154, 186}};
  EXPECT_EQ(nearest(pages, 36, 90), Range(36, 90));
  EXPECT_EQ(nearest(pages, 5, 36), Range(4, 36));
  EXPECT_EQ(nearest(pages, 0, 80), Range(4, 90));
  EXPECT_EQ(nearest(pages, 0, 79), Range(4, 68)) << "the lower one of two";
  EXPECT_EQ(nearest(pages, 40, 50), Range(36, 68)) << "one page at least";
  EXPECT_EQ(nearest(pages, 68, 36), Range(68, 90));
  EXPECT_EQ(nearest(pages, 36, 154), Range(36, 90)) << "not across a hole";
  EXPECT_EQ(nearest(pages, 96, 180), Range(122, 186));
  EXPECT_EQ(nearest(pages, 400, 500), Range(154, 186));
}

TEST(PageRangeHostile, PositionsFarAwayAreNotWrappedAround) {
  const std::vector<PageRange> pages = {{4, 36}, {36, 68}};
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(nearest(pages, least, most), Range(4, 68));
  EXPECT_EQ(nearest(pages, most, least), Range(36, 68));
  EXPECT_EQ(nearest({}, 4, 36), Range(0, 0));
}

TEST(PageRange, ARefusalNamesBothRanges) {
  const Status refused = refuse_removal(2, 5, 36, {4, 36});
  EXPECT_EQ(refused.code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(std::string(refused.message()),
            "layer 2 has no sealed pages that hold exactly positions [5, 36); the nearest that it "
            "has hold [4, 36)");
  EXPECT_EQ(
      std::string(refuse_removal(0, 5, 36, {}).message()),
      "layer 0 has no sealed pages that hold exactly positions [5, 36); it has no sealed pages "
      "at all");
}

}  // namespace
}  // namespace kvtilt
