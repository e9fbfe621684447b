// SPDX-License-Identifier: MIT
/// Computes from a sequence's length when pages are sealed, and when a window frees them.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/page/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// The longest length accepted: more than any context, and far from overflow in sums and products.
inline constexpr std::int64_t max_tokens = std::int64_t{1} << 40;

/// What one layer holds of a sequence that was only appended to.
struct TokenCounts {
  std::int64_t sinks = 0;  ///< tokens
  std::int64_t pages = 0;  ///< sealed pages that the window has not freed
  std::int64_t tail = 0;   ///< tokens
  std::int64_t tail_blocks = 0;
};

/// The numbers of a layer that decide when pages are sealed and freed. The tail (newest tokens, in 16
/// bits) is a ring of blocks of page_tokens slots.
struct TokenPlacement {
  int page_tokens;
  int sink_tokens;
  int recent_tokens;
  int window = 0;  ///< 0: nothing is ever freed

  /// Blocks of the tail's ring: it holds at most recent_tokens + page_tokens, just before it seals.
  [[nodiscard]] KVTILT_HD constexpr int ring_blocks() const {
    return (recent_tokens + page_tokens - 1) / page_tokens + 1;
  }
  /// Ring blocks that a sequence of up to `length` tokens needs, wherever its tail starts after
  /// truncations.
  [[nodiscard]] std::size_t ring_blocks_for(std::int64_t length) const {
    return static_cast<std::size_t>(
        std::min<std::int64_t>(ring_blocks(), blocks_of(length - sink_tokens)));
  }
  /// The most table entries (pages and blocks, sinks included) of a sequence of up to `length` tokens
  /// if no truncation cuts a sealed page.
  [[nodiscard]] std::int64_t most_entries(std::int64_t length) const {
    std::int64_t entries = blocks_of(length - sink_tokens);
    if (window > 0)  // the pages that the window touches, and a full tail
      entries = std::min(entries, blocks_of(window) + ring_blocks());
    return entries + (sink_tokens > 0 && length > 0 ? 1 : 0);
  }
  /// How many pages are sealed while a sequence whose tail starts at `tail_start` grows to `length`.
  [[nodiscard]] KVTILT_HD constexpr std::int64_t seals(std::int64_t tail_start,
                                                       std::int64_t length) const {
    const std::int64_t beyond = length - tail_start - recent_tokens;
    if (beyond < 2 * std::int64_t{page_tokens})  // avoids a division, which is slow on GPUs
      return beyond < page_tokens ? 0 : 1;
    return beyond / page_tokens;
  }
  /// Tokens that a sequence of `length` tokens takes before a page is sealed.
  [[nodiscard]] KVTILT_HD constexpr std::int64_t tokens_before_seal(std::int64_t tail_start,
                                                                    std::int64_t length) const {
    return tail_start + recent_tokens + page_tokens - 1 - length;
  }
  /// Whether a sequence of `length` tokens cannot be cut to `cut`: the next token would see one that
  /// the window has freed, which are those before first_kept except sinks.
  [[nodiscard]] KVTILT_HD constexpr bool needs_freed_tokens(std::int64_t first_kept,
                                                            std::int64_t length,
                                                            std::int64_t cut) const {
    if (cut >= length) return false;
    std::int64_t oldest = cut - window + 1;
    if (oldest < sink_tokens) oldest = sink_tokens;
    return oldest < (first_kept < cut ? first_kept : cut);
  }
  /// Sealed pages that end at or before this position are freed once `length` tokens were appended.
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
    // The window frees pages whenever one is sealed; the last time, the tail was full.
    const std::int64_t behind = free_until(tail_start + recent_tokens) - sink_tokens;
    counts.pages = sealed - (behind <= 0 ? 0 : behind / page_tokens);
    return counts;
  }

 private:
  [[nodiscard]] std::int64_t blocks_of(std::int64_t tokens) const {
    return tokens <= 0 ? 0 : (tokens + page_tokens - 1) / page_tokens;
  }
};

/// InvalidArgument, naming what no cache accepts: page_tokens, sink_tokens or recent_tokens. The
/// window belongs to the shape, and check_shape() checks it.
inline Status check_placement(const TokenPlacement& placement) {
  const auto fail = [](const char* name, int value, int most) {
    return Status::error(ErrorCode::InvalidArgument, "%s is %d, must be 0 to %d", name, value,
                         most);
  };
  KVTILT_RETURN_IF_ERROR(check_page_tokens(placement.page_tokens));
  if (placement.sink_tokens < 0 || placement.sink_tokens > 1024)
    return fail("sink_tokens", placement.sink_tokens, 1024);
  if (placement.recent_tokens < 0 || placement.recent_tokens > 65536)
    return fail("recent_tokens", placement.recent_tokens, 65536);
  return {};
}

}  // namespace kvtilt
