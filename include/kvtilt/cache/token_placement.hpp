// SPDX-License-Identifier: MIT
/// When a page is sealed and when it is freed: the arithmetic of a sequence's length.
#pragma once

#include <kvtilt/core/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// What a sequence that was only ever appended to holds of one layer.
struct TokenCounts {
  std::int64_t sinks = 0;  ///< tokens
  std::int64_t pages = 0;  ///< sealed, full, and not behind the window
  std::int64_t tail = 0;   ///< tokens
  std::int64_t tail_blocks = 0;
};

/// Numbers that decide when a page is sealed and when it is freed; one set per layer.
struct TokenPlacement {
  int page_tokens;
  int sink_tokens;
  int recent_tokens;
  int window = 0;  ///< 0: nothing is ever freed

  /// Blocks of a full tail: it holds at most recent + page tokens, at the moment of sealing.
  [[nodiscard]] KVTILT_HD constexpr int ring_blocks() const {
    return (recent_tokens + page_tokens - 1) / page_tokens + 1;
  }
  /// Tail blocks of a sequence of up to `length` tokens, wherever truncations let its tail start.
  [[nodiscard]] std::size_t ring_blocks_for(std::int64_t length) const {
    return static_cast<std::size_t>(
        std::min<std::int64_t>(ring_blocks(), blocks_of(length - sink_tokens)));
  }
  /// The most pages and blocks, sinks included, that a sequence of up to `length` tokens holds if no
  /// truncation ever cuts a sealed page in two.
  [[nodiscard]] std::int64_t most_entries(std::int64_t length) const {
    std::int64_t entries = blocks_of(length - sink_tokens);
    if (window > 0)  // the pages that the window touches, and a full tail
      entries = std::min(entries, blocks_of(window) + ring_blocks());
    return entries + (sink_tokens > 0 && length > 0 ? 1 : 0);
  }
  /// Pages sealed while a sequence grows to `length` whose tail starts at `tail_start`.
  [[nodiscard]] KVTILT_HD constexpr std::int64_t seals(std::int64_t tail_start,
                                                        std::int64_t length) const {
    const std::int64_t beyond = length - tail_start - recent_tokens;
    if (beyond < 2 * std::int64_t{page_tokens})  // kernels divide slowly
      return beyond < page_tokens ? 0 : 1;
    return beyond / page_tokens;
  }
  /// Sealed pages that end here or earlier are free once `length` tokens were appended.
  [[nodiscard]] KVTILT_HD constexpr std::int64_t free_until(std::int64_t length) const {
    return window == 0 ? 0 : length - recent_tokens - window;
  }

  [[nodiscard]] TokenCounts counts_at(std::int64_t length) const {
    TokenCounts counts;
    counts.sinks = std::min<std::int64_t>(length, sink_tokens);
    const std::int64_t sealed = seals(sink_tokens, length);
    const std::int64_t tail_start = sink_tokens + sealed * page_tokens;
    counts.tail = std::max<std::int64_t>(0, length - tail_start);
    counts.tail_blocks = blocks_of(counts.tail);
    // Pages are freed when one is sealed: the last time, the tail was full.
    const std::int64_t behind = free_until(tail_start + recent_tokens) - sink_tokens;
    counts.pages = sealed - (behind <= 0 ? 0 : behind / page_tokens);
    return counts;
  }

 private:
  [[nodiscard]] std::int64_t blocks_of(std::int64_t tokens) const {
    return tokens <= 0 ? 0 : (tokens + page_tokens - 1) / page_tokens;
  }
};

}  // namespace kvtilt
