// SPDX-License-Identifier: MIT
#include <kvtilt/core/tree_window.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <vector>

namespace kvtilt::detail {
namespace {

TEST(TreeBits, AreAsManyAsTheTreeHasTokens) {
  for (int tokens = 0; tokens <= most_tree_tokens; ++tokens)
    EXPECT_EQ(std::popcount(tree_bits(tokens)), tokens);
  EXPECT_EQ(tree_bits(3), 0b111u);
}

TEST(TreeWindow, HoldsThePathAndTheNewestTokensBeforeIt) {
  //  tokens 0 1 2 3 4, of which 4 continues 1: its path is 0, 1, 4
  const std::uint64_t path = 0b10011;
  const auto expect = [&](int window, std::uint64_t seen, int older) {
    const TreeWindow left = TreeWindow::of(path, 5, window);
    EXPECT_EQ(left.seen, seen) << window;
    EXPECT_EQ(left.older, older) << window;
  };
  expect(1, 0b10000, 0);
  expect(2, 0b10010, 0);
  expect(3, 0b10011, 0);
  expect(4, 0b10011, 1);
  expect(100, 0b10011, 97);
}

TEST(TreeWindow, ARowThatSeesNoNewTokenStillCountsItself) {
  EXPECT_EQ(TreeWindow::of(0, 3, 1).older, 0);
  EXPECT_EQ(TreeWindow::of(0, 3, 10).older, 9);
  EXPECT_EQ(TreeWindow::of(0b1000, 3, 10).older, 9) << "there is no fourth token";
}

TEST(TreeWindowRandom, HoldsTheNewestOfAllThatIsSeen) {
  test::Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const int rows = random.between(1, 64);
    const int window = random.between(1, 80);
    const std::uint64_t word = random.next() & random.next();
    std::vector<int> newest;  // -1, -2, ... are the tokens before the new ones
    for (int i = rows - 1; i >= -80; --i)
      if (i < 0 || (word >> i & 1) != 0) newest.push_back(i);
    newest.resize(static_cast<std::size_t>(window));
    std::uint64_t seen = 0;
    int older = 0;
    for (const int i : newest)
      if (i >= 0)
        seen |= std::uint64_t{1} << i;
      else
        ++older;
    if (newest[0] < 0) --older;  // the row itself is not counted
    const TreeWindow left = TreeWindow::of(word, rows, window);
    ASSERT_EQ(left.seen, seen);
    ASSERT_EQ(left.older, older);
  }
}

}  // namespace
}  // namespace kvtilt::detail
