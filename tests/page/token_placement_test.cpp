// SPDX-License-Identifier: MIT
#include <kvtilt/page/token_placement.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

namespace kvtilt {
namespace {

/// The rules, token by token: a page is sealed once it lies beyond the recent tokens; at a seal,
/// pages are freed that no recent token's window reaches.
struct Model {
  const TokenPlacement& rules;
  std::int64_t length = 0;
  std::int64_t sinks = 0;
  std::int64_t tail = 0;
  std::int64_t sealed = 0;
  std::deque<std::int64_t> page_ends = {};

  void append() {
    ++length;
    if (length <= rules.sink_tokens) {
      ++sinks;
      return;
    }
    if (++tail < rules.recent_tokens + rules.page_tokens) return;
    while (rules.window > 0 && !page_ends.empty() &&
           page_ends.front() + rules.recent_tokens + rules.window <= length)
      page_ends.pop_front();
    tail -= rules.page_tokens;
    ++sealed;
    page_ends.push_back(length - tail);
  }
};

TEST(TokenPlacement, CountsAgreeWithAppendingTokenByToken) {
  for (const int page : {32, 64})
    for (const int sinks : {0, 1, 4, 70})
      for (const int recent : {0, 1, 31, 64, 100})
        for (const int window : {0, 1, 31, 32, 33, 64, 150, 5000}) {
          const TokenPlacement placement{page, sinks, recent, window};
          Model model{placement};
          std::int64_t most_entries = 0;
          for (std::int64_t length = 0; length <= 600; ++length) {
            const TokenCounts counts = placement.counts_at(length);
            ASSERT_EQ(counts.sinks, model.sinks);
            ASSERT_EQ(counts.tail, model.tail);
            ASSERT_EQ(counts.pages, static_cast<std::int64_t>(model.page_ends.size()))
                << "page " << page << ", sinks " << sinks << ", recent " << recent << ", window "
                << window << ", length " << length;
            ASSERT_EQ(counts.tail_blocks, (model.tail + page - 1) / page);
            ASSERT_EQ(placement.seals(sinks, length), model.sealed);
            ASSERT_LE(counts.tail_blocks,
                      static_cast<std::int64_t>(placement.ring_blocks_for(length)));
            ASSERT_LE(placement.ring_blocks_for(length),
                      static_cast<std::size_t>(placement.ring_blocks()));
            const std::int64_t entries = (counts.sinks > 0) + counts.pages + counts.tail_blocks;
            most_entries = std::max(most_entries, entries);
            ASSERT_LE(most_entries, placement.most_entries(length));
            ASSERT_TRUE(window > 0 || entries == placement.most_entries(length));
            model.append();
          }
          ASSERT_GE(most_entries + 1, placement.most_entries(600)) << "a bound far from it";
        }
}

TEST(TokenPlacement, TheRingHoldsTheTailAtTheMomentOfSealing) {
  EXPECT_EQ((TokenPlacement{64, 4, 128, 0}.ring_blocks()), 3);
  EXPECT_EQ((TokenPlacement{64, 4, 129, 0}.ring_blocks()), 4);
  EXPECT_EQ((TokenPlacement{64, 4, 0, 0}.ring_blocks()), 1);
  EXPECT_EQ((TokenPlacement{64, 4, 128, 0}.ring_blocks_for(4)), 0u);
  EXPECT_EQ((TokenPlacement{64, 4, 128, 0}.ring_blocks_for(5)), 1u);
  EXPECT_EQ((TokenPlacement{64, 4, 128, 0}.ring_blocks_for(1 << 20)), 3u);
}

TEST(TokenPlacement, LongContextsDoNotOverflow) {
  const TokenPlacement placement{32, 4, 128, 4096};
  const TokenCounts counts = placement.counts_at(std::int64_t{1} << 40);
  EXPECT_EQ(counts.pages, 4096 / 32);
  EXPECT_EQ((TokenPlacement{32, 0, 0, 0}.counts_at(std::int64_t{1} << 40).pages),
            std::int64_t{1} << 35);
  EXPECT_EQ(placement.most_entries(std::int64_t{1} << 40), 1 + 4096 / 32 + 5);
}

TEST(TokenPlacement, ThePageIsSealedByTheTokenAfterTokensBeforeSeal) {
  for (const int recent : {0, 1, 64, 100})
    for (const std::int64_t tail_start : {4, 36, 41}) {
      const TokenPlacement placement{32, 4, recent};
      for (std::int64_t length = tail_start; placement.seals(tail_start, length) == 0; ++length) {
        const std::int64_t room = placement.tokens_before_seal(tail_start, length);
        EXPECT_EQ(placement.seals(tail_start, length + room), 0);
        EXPECT_EQ(placement.seals(tail_start, length + room + 1), 1);
      }
    }
}

TEST(TokenPlacement, ACutNeedsFreedTokensIfTheNextTokenSeesOne) {
  const std::int64_t length = 40;
  for (const int sinks : {0, 4})
    for (const int window : {1, 2, 9, 100})
      for (const std::int64_t first_kept : {0, 4, 12, 30})
        for (std::int64_t cut = 0; cut <= length + 1; ++cut) {
          bool sees = false;  // a freed token, from the position of the next one
          for (std::int64_t p = sinks; p < std::min(cut, first_kept); ++p)
            sees = sees || cut - p < window;
          EXPECT_EQ(
              (TokenPlacement{32, sinks, 0, window}.needs_freed_tokens(first_kept, length, cut)),
              cut < length && sees)
              << sinks << " sinks, window " << window << ", freed to " << first_kept << ", cut to "
              << cut;
        }
}

TEST(TokenPlacement, LimitsAreAccepted) {
  for (const int page : {32, 64, 128})
    for (const int sinks : {0, 1024})
      for (const int recent : {0, 65536}) EXPECT_TRUE(check_placement({page, sinks, recent}).ok());
}

TEST(TokenPlacementHostile, NumbersOutOfRangeAreNamed) {
  const auto refusal = [](const TokenPlacement& placement) {
    const Status status = check_placement(placement);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({48, 4, 128}), "page_tokens is 48, must be 32, 64 or 128");
  EXPECT_EQ(refusal({64, -1, 128}), "sink_tokens is -1, must be 0 to 1024");
  EXPECT_EQ(refusal({64, 1025, 128}), "sink_tokens is 1025, must be 0 to 1024");
  EXPECT_EQ(refusal({64, 4, -1}), "recent_tokens is -1, must be 0 to 65536");
  EXPECT_EQ(refusal({64, 4, 65537}), "recent_tokens is 65537, must be 0 to 65536");
}

}  // namespace
}  // namespace kvtilt
