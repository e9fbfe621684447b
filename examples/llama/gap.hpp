// SPDX-License-Identifier: MIT
// What a sequence has removed from its context.
#pragma once

#include "fail.hpp"

namespace llama {

/// Positions begin to begin + tokens - 1, whose tokens are gone.
struct Gap {
  int begin = 0;
  int tokens = 0;

  [[nodiscard]] int end() const { return begin + tokens; }

  /// The gap with `from` to `to` - 1 added. Throws if that would leave tokens between two gaps.
  [[nodiscard]] Gap with(int from, int to) const {
    if (from >= to || (tokens > 0 && from != end())) {
      fail("cannot remove tokens ", from, " to ", to - 1, " behind a gap from ", begin, " to ",
           end() - 1);
    }
    return tokens > 0 ? Gap{begin, to - begin} : Gap{from, to - from};
  }

  /// Throws if a sequence of this length would end in front of the gap's end.
  void check_length(int length) const {
    if (length < end()) fail("cannot truncate to ", length, ", in front of removed tokens");
  }
};

}  // namespace llama
