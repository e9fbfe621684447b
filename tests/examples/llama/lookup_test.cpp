// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <llama/lookup.hpp>

#include <vector>

namespace llama {
namespace {

using Tokens = std::vector<int>;

TEST(LookUp, FindsWhatFollowedTheLongestMatch) {
  EXPECT_EQ(look_up(Tokens{1, 2, 3, 9, 2, 3, 7, 1, 2, 3}, 2), (Tokens{9, 2}));  // 1 2 3, not 2 3
  EXPECT_EQ(look_up(Tokens{5, 1, 6, 1, 8, 1}, 1), (Tokens{8}));                 // the latest 1
}

TEST(LookUp, GivesAsManyAsAskedForOrNone) {
  EXPECT_EQ(look_up(Tokens{1, 2, 3}, 4), Tokens{});
  EXPECT_EQ(look_up(Tokens{}, 4), Tokens{});
  EXPECT_EQ(look_up(Tokens{1}, 4), Tokens{});
  EXPECT_EQ(look_up(Tokens{1, 1}, 0), Tokens{});
}

TEST(LookUp, GoesOnWithARepetitionBehindTheEnd) {
  EXPECT_EQ(look_up(Tokens{4, 4}, 5), (Tokens{4, 4, 4, 4, 4}));
  EXPECT_EQ(look_up(Tokens{1, 2, 3, 1, 2, 3, 1}, 7), (Tokens{2, 3, 1, 2, 3, 1, 2}));
}

TEST(LookUp, ALongMatchStopsTheSearch) {
  Tokens text(100000, 3);  // quadratic where every position is compared: seconds
  EXPECT_EQ(look_up(text, 1), Tokens{3});
}

}  // namespace
}  // namespace llama
