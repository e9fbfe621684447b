// SPDX-License-Identifier: MIT
#include "lookup.hpp"

#include <algorithm>
#include <cstddef>

namespace llama {
namespace {

// Longer matches hardly improve the guesses; the limit keeps texts of one repeated token linear.
constexpr std::size_t longest_match = 8;

}  // namespace

std::vector<int> look_up(std::span<const int> text, int most) {
  std::size_t best = 0;   // length of the match
  std::size_t after = 0;  // index behind it
  for (std::size_t end = text.size(); end-- > 1 && best < longest_match;) {
    std::size_t length = 0;
    while (length < std::min(end, longest_match) &&
           text[end - 1 - length] == text[text.size() - 1 - length]) {
      ++length;
    }
    if (length > best) {
      best = length;
      after = end;
    }
  }
  std::vector<int> guesses;
  for (std::size_t i = after; best > 0 && i - after < static_cast<std::size_t>(most); ++i) {
    guesses.push_back(i < text.size() ? text[i] : guesses[i - text.size()]);
  }
  return guesses;
}

}  // namespace llama
