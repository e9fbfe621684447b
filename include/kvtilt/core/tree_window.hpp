// SPDX-License-Identifier: MIT
/// Trees of drafts under a window, on CPUs and GPUs. Tokens of a tree are appended one after the other,
/// but those of other branches are no part of a node's text: the window does not count them.
#pragma once

#include <kvtilt/core/config.hpp>

#include <bit>
#include <cstdint>

namespace kvtilt {

/// Most tokens of a tree: the bits of a mask's word.
inline constexpr int most_tree_tokens = 64;

namespace detail {

/// The bits of a word that stand for a tree's tokens, of which there may be none.
KVTILT_HD constexpr std::uint64_t tree_bits(std::int64_t tokens) {
  return tokens < most_tree_tokens ? (std::uint64_t{1} << tokens) - 1 : ~std::uint64_t{0};
}

/// What a window leaves visible to one row under a tree mask: of the new tokens that its word names and
/// of the tokens before all new ones, the newest `window`. A node so sees what it would see if its path
/// alone had been appended.
struct TreeWindow {
  std::uint64_t seen;  ///< the row's word without the new tokens outside the window
  int older;           ///< tokens before the new ones that are inside the window

  /// word    of the tree mask; a row counts itself even where the word leaves it out
  /// tokens  of the tree: bits beyond them mean nothing
  /// window  at least 1
  KVTILT_HD static TreeWindow of(std::uint64_t word, int tokens, int window) {
    TreeWindow left{word & tree_bits(tokens), 0};
#if defined(__CUDA_ARCH__)
    int count = __popcll(left.seen);
#else
    int count = std::popcount(left.seen);
#endif
    if (window > count) left.older = window - (count > 0 ? count : 1);
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (; count > window; --count) left.seen &= left.seen - 1;  // drops the oldest
    return left;
  }
};

}  // namespace detail
}  // namespace kvtilt
