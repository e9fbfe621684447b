// SPDX-License-Identifier: MIT
/// One layer of one sequence: its page table, the ring of 16-bit blocks behind its tail, and the
/// pages reserved for it. Moves tokens between the states of a page; knows nothing of codes.
///
///     position   0 .. sinks-1 | page 0 | page 1 | ... | tail: recent .. recent + page - 1 tokens
///     page kind     Sinks     |        Sealed         |  Tail blocks, `page` slots each
///
/// The tail starts at a block boundary and loses its first block when that is sealed, so a page is
/// always quantized from one contiguous block.
#pragma once

#include <kvtilt/cache/buffer.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Numbers that decide when a page is sealed; one set per cache.
struct TokenPlacement {
  int page_tokens;
  int sink_tokens;
  int recent_tokens;

  /// Blocks of a full tail: it holds at most recent + page tokens, at the moment of sealing.
  [[nodiscard]] int ring_blocks() const {
    return (recent_tokens + page_tokens - 1) / page_tokens + 1;
  }
};

/// Blocks of each kind.
struct BlockCounts {
  std::size_t sinks = 0;
  std::size_t tail = 0;
  std::size_t sealed = 0;
};

class SequenceLayer {
 public:
  SequenceLayer(const TokenPlacement& placement, const Allocator& allocator)
      : placement_(placement),
        entries_(allocator),
        ring_(allocator),
        spare_(allocator),
        tail_start_(placement.sink_tokens) {}

  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] const Buffer<PageEntry>& entries() const { return entries_; }
  [[nodiscard]] std::size_t table_bytes() const { return entries_.size() * sizeof(PageEntry); }

  /// Pages that will be sealed on the way to `length` tokens.
  [[nodiscard]] std::size_t seals_until(std::int64_t length) const {
    const std::int64_t beyond = length - tail_start_ - placement_.recent_tokens;
    return beyond <= 0 ? 0 : static_cast<std::size_t>(beyond / placement_.page_tokens);
  }

  /// Blocks this layer lacks to hold `length` tokens.
  [[nodiscard]] BlockCounts missing_for(std::int64_t length) const {
    BlockCounts missing;
    if (placement_.sink_tokens > 0 && sink_block_ == nullptr && length > 0) missing.sinks = 1;
    const std::int64_t tail = std::max<std::int64_t>(0, length - tail_start_);
    const std::size_t blocks = std::min<std::size_t>(
        static_cast<std::size_t>(placement_.ring_blocks()),
        static_cast<std::size_t>((tail + placement_.page_tokens - 1) / placement_.page_tokens));
    if (blocks > ring_.size()) missing.tail = blocks - ring_.size();
    const std::size_t seals = seals_until(length);
    if (seals > spare_.size()) missing.sealed = seals - spare_.size();
    return missing;
  }

  /// Room in the tables for what `missing_for(length)` names; false if there is no memory: some
  /// tables may then have grown.
  [[nodiscard]] bool reserve_tables(std::int64_t length) {
    const TableSizes sizes = table_sizes(length);
    return entries_.reserve(sizes.entries) && ring_.reserve(sizes.ring) &&
           spare_.reserve(sizes.spare);
  }

  /// Bytes by which reserve_tables(length) lets the tables grow.
  [[nodiscard]] std::size_t missing_table_bytes(std::int64_t length) const {
    const TableSizes sizes = table_sizes(length);
    return entries_.missing_bytes(sizes.entries) + ring_.missing_bytes(sizes.ring) +
           spare_.missing_bytes(sizes.spare);
  }

  /// Bytes of the tables, used or not.
  [[nodiscard]] std::size_t reserved_table_bytes() const {
    return entries_.capacity_bytes() + ring_.capacity_bytes() + spare_.capacity_bytes();
  }

  void give_sink_block(std::byte* block) { sink_block_ = block; }
  void give_tail_block(std::byte* block) { ring_.push_back(block); }
  void give_page(std::byte* page) { spare_.push_back(page); }

  /// Calls sinks(block), tail(block) or sealed(page) for everything this layer owns.
  template <class Sinks, class Tail, class Sealed>
  void for_each_block(Sinks sinks, Tail tail, Sealed sealed) {
    if (sink_block_ != nullptr) sinks(sink_block_);
    for (std::size_t i = 0; i < ring_.size(); ++i) tail(ring_[i]);
    for (std::size_t i = 0; i < spare_.size(); ++i) sealed(spare_[i]);
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i].kind == PageKind::Sealed) sealed(entries_[i].data);
  }

  /// Adds one token and returns the page whose last slot is its own. Capacity was checked.
  [[nodiscard]] const PageEntry& place_token() {
    if (length_ < placement_.sink_tokens) {
      if (length_ == 0) entries_.push_back({sink_block_, 0, 0, PageKind::Sinks});
    } else if (const std::int64_t slot = length_ - tail_start_;
               slot % placement_.page_tokens == 0) {
      const std::size_t index = static_cast<std::size_t>(slot / placement_.page_tokens);
      entries_.push_back({ring_[(ring_head_ + index) % ring_.size()], length_, 0, PageKind::Tail});
    }
    ++length_;
    ++entries_.back().tokens;
    return entries_.back();
  }

  /// Whether a full page lies beyond the recent tokens.
  [[nodiscard]] bool must_seal() const {
    return length_ - tail_start_ == placement_.recent_tokens + placement_.page_tokens;
  }

  /// The 16-bit block to quantize, and the page to quantize it into.
  struct Sealing {
    const std::byte* block;
    std::byte* page;
  };
  /// Replaces the first tail block by a sealed page in the table; the caller then fills the page.
  [[nodiscard]] Sealing seal() {
    PageEntry& entry = entries_[first_tail_entry()];
    const Sealing sealing{entry.data, spare_.pop_back()};
    entry.data = sealing.page;
    entry.kind = PageKind::Sealed;
    ring_head_ = (ring_head_ + 1) % ring_.size();
    tail_start_ += placement_.page_tokens;
    return sealing;
  }

  /// Forgets all tokens from `length` on. A cut inside a sealed page leaves it with fewer tokens;
  /// the tail then starts anew behind it.
  void truncate(std::int64_t length) {
    if (length >= length_) return;
    while (entries_.size() > 0 && entries_.back().first_position >= length) {
      const PageEntry dropped = entries_.pop_back();
      if (dropped.kind == PageKind::Sealed) spare_.push_back(dropped.data);
    }
    length_ = length;
    if (entries_.size() > 0)
      entries_.back().tokens = static_cast<std::int32_t>(
          std::min<std::int64_t>(entries_.back().tokens, length - entries_.back().first_position));
    if (length < tail_start_) {
      tail_start_ = std::max<std::int64_t>(length, placement_.sink_tokens);
      ring_head_ = 0;
    }
  }

 private:
  struct TableSizes {
    std::size_t entries;
    std::size_t ring;
    std::size_t spare;
  };
  [[nodiscard]] TableSizes table_sizes(std::int64_t length) const {
    const BlockCounts missing = missing_for(length);
    const std::size_t pages = entries_.size() + spare_.size() + missing.sealed;
    return {pages + static_cast<std::size_t>(placement_.ring_blocks()) + 1,
            ring_.size() + missing.tail, pages};
  }

  [[nodiscard]] std::size_t first_tail_entry() const {
    std::size_t index = entries_.size();
    while (index > 0 && entries_[index - 1].kind == PageKind::Tail) --index;
    return index;
  }

  TokenPlacement placement_;
  Buffer<PageEntry> entries_;  ///< sinks, sealed pages, tail blocks in use
  Buffer<std::byte*> ring_;    ///< tail blocks; the ring turns only once it is complete
  Buffer<std::byte*> spare_;   ///< reserved pages that hold nothing yet
  std::byte* sink_block_ = nullptr;
  std::size_t ring_head_ = 0;  ///< block at which the tail starts
  std::int64_t tail_start_;    ///< position of the tail's first token
  std::int64_t length_ = 0;
};

}  // namespace kvtilt
