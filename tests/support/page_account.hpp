// SPDX-License-Identifier: MIT
/// A reference model of the pages that one layer of a sequence holds: token by token, one object
/// per page, without tables and kernels.
#pragma once

#include <kvtilt/page/token_placement.hpp>

#include "support/model_layers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace kvtilt::test {

class PageAccount {
 public:
  /// A page of the pool, shared after a fork: its number, once it is known.
  using Page = std::shared_ptr<std::int32_t>;
  struct Entry {
    std::int64_t first;
    std::int64_t count;
    Page page;
    bool shared;  ///< was shared once: this sequence never reuses it

    [[nodiscard]] std::int64_t end() const { return first + count; }
  };

  explicit PageAccount(const TokenPlacement& placement)
      : placement_(placement), tail_start_(placement.sink_tokens) {}

  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t freed_until() const { return freed_until_; }
  [[nodiscard]] const std::vector<Entry>& sealed() const { return sealed_; }
  /// Tokens behind the sinks that were sealed and are gone, if short pages count as whole ones.
  [[nodiscard]] std::int64_t dropped() const {
    const std::int64_t held = static_cast<std::int64_t>(sealed_.size()) * placement_.page_tokens;
    return std::max<std::int64_t>(0, tail_start_ - placement_.sink_tokens - held);
  }
  /// Reserved pages without tokens.
  [[nodiscard]] std::int64_t unused() const { return unused_; }

  void reserve(std::int64_t pages) { unused_ += pages; }

  /// Appends; returns false and changes nothing if there are too few pages.
  bool append(std::int64_t tokens) {
    PageAccount after = *this;
    for (std::int64_t i = 0; i < tokens; ++i) after.add_token();
    for (Entry& entry : after.sealed_)
      if (entry.page == nullptr) {
        entry.page = std::make_shared<std::int32_t>(-1);
        --after.unused_;
      }
    if (after.unused_ < 0) return false;
    *this = std::move(after);
    return true;
  }

  /// Pages missing to grow to `tokens` tokens, in appends of any size.
  [[nodiscard]] std::int64_t missing(std::int64_t tokens) const {
    PageAccount grown = *this;
    std::int64_t least = unused_;
    while (grown.length_ < tokens) {
      grown.add_token_and_page();
      least = std::min(least, grown.unused_);
    }
    return std::max<std::int64_t>(0, -least);
  }
  /// The same if the window gave no pages back.
  [[nodiscard]] std::int64_t most_missing(std::int64_t tokens) const {
    PageAccount endless = *this;
    endless.placement_.window = 0;
    return endless.missing(tokens);
  }
  /// Tokens up to which no page is missing, at most `most`.
  [[nodiscard]] std::int64_t reserved(std::int64_t most) const {
    PageAccount grown = *this;
    while (grown.length_ < most) {
      grown.add_token_and_page();
      if (grown.unused_ < 0) return grown.length_ - 1;
    }
    return most;
  }

  /// Whether the window has freed a token that the next token after this truncation would see.
  [[nodiscard]] bool refuses_truncation(std::int64_t length) const {
    if (length >= length_ || placement_.window == 0) return false;
    const std::int64_t oldest =
        std::max<std::int64_t>(placement_.sink_tokens, length - placement_.window + 1);
    return oldest < std::min(length, freed_until_);
  }
  void truncate(std::int64_t length) {
    if (length >= length_) return;
    length_ = length;
    while (!sealed_.empty() && sealed_.back().first >= length) {
      drop(sealed_.back());
      sealed_.pop_back();
    }
    if (!sealed_.empty())
      sealed_.back().count = std::min(sealed_.back().count, length - sealed_.back().first);
    if (length < tail_start_) tail_start_ = std::max<std::int64_t>(length, placement_.sink_tokens);
    freed_until_ = length <= placement_.sink_tokens ? 0 : std::min(freed_until_, length);
  }

  /// Whether [from, to) consists of whole pages and of positions that the window has freed.
  [[nodiscard]] bool can_remove(std::int64_t from, std::int64_t to) const {
    return may_remove(sealed_, placement_.sink_tokens, freed_until_, from, to);
  }
  void remove(std::int64_t from, std::int64_t to) {
    const auto [first, last] = pages_between(sealed_, from, to);
    for (std::size_t i = first; i < last; ++i) drop(sealed_[i]);
    sealed_.erase(sealed_.begin() + static_cast<std::ptrdiff_t>(first),
                  sealed_.begin() + static_cast<std::ptrdiff_t>(last));
  }

  /// A copy with the same pages, and none unused.
  [[nodiscard]] PageAccount fork() {
    for (Entry& entry : sealed_) entry.shared = true;
    PageAccount child = *this;
    child.unused_ = 0;
    return child;
  }

  /// A copy of the tokens without pages: they are missing as well.
  [[nodiscard]] PageAccount copy() const {
    PageAccount other = *this;
    for (Entry& entry : other.sealed_) {
      entry.page = std::make_shared<std::int32_t>(-1);
      entry.shared = false;
    }
    other.unused_ = -static_cast<std::int64_t>(sealed_.size());
    return other;
  }

  /// Whether position `position` is in the sinks, a page or the tail.
  [[nodiscard]] bool holds(std::int64_t position) const {
    if (position < 0 || position >= length_) return false;
    if (position < placement_.sink_tokens || position >= tail_start_) return true;
    return std::any_of(sealed_.begin(), sealed_.end(), [&](const Entry& entry) {
      return position >= entry.first && position < entry.end();
    });
  }

 private:
  void add_token() {
    ++length_;
    if (length_ - tail_start_ < placement_.recent_tokens + placement_.page_tokens) return;
    sealed_.push_back({tail_start_, placement_.page_tokens, nullptr, false});
    tail_start_ += placement_.page_tokens;
    const std::int64_t cut = length_ - placement_.recent_tokens - placement_.window;
    while (placement_.window > 0 && !sealed_.empty() && sealed_.front().end() <= cut) {
      freed_until_ = sealed_.front().end();
      // Tokens that the window frees at once were never in a page.
      if (sealed_.front().page != nullptr) drop(sealed_.front());
      sealed_.erase(sealed_.begin());
    }
  }
  /// Adds a token and takes a page for it if it needs one; the count of unused pages may be
  /// negative.
  void add_token_and_page() {
    add_token();
    if (sealed_.empty() || sealed_.back().page != nullptr) return;
    sealed_.back().page = std::make_shared<std::int32_t>(-1);
    --unused_;
  }
  void drop(const Entry& entry) {
    if (!entry.shared) ++unused_;
  }

  TokenPlacement placement_;
  std::int64_t length_ = 0;
  std::int64_t tail_start_;
  std::int64_t freed_until_ = 0;  ///< the window has freed sealed positions before it
  std::vector<Entry> sealed_;
  std::int64_t unused_ = 0;
};

}  // namespace kvtilt::test
