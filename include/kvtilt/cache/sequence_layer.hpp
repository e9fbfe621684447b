// SPDX-License-Identifier: MIT
/// One layer of one sequence: its page table, the ring of 16-bit blocks that hold its tail (newest
/// tokens), and its reserved pages. Keeps the tables; KVCache reads and writes the bytes of tokens.
///
///     position   0 .. sinks-1 | page 0 | page 1 | ... | tail: recent .. recent + page - 1 tokens
///     page kind     Sinks     |        Sealed         |  Tail blocks, `page` slots each
///
/// The tail starts at a block boundary and its first block is sealed as a whole, so a page is always
/// quantized from one contiguous block. A layer with a window frees a sealed page once its last
/// position is `recent` tokens plus a window behind the newest: the rest serves every query among the
/// newest `recent` tokens, and every truncation within them.
#pragma once

#include <kvtilt/cache/block_pool.hpp>
#include <kvtilt/cache/buffer.hpp>
#include <kvtilt/cache/entry_counts.hpp>
#include <kvtilt/cache/page_references.hpp>
#include <kvtilt/cpu/layer_view.hpp>
#include <kvtilt/page/saved_sequence.hpp>
#include <kvtilt/page/token_placement.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

namespace kvtilt {

/// Numbers of blocks of each kind.
struct BlockCounts {
  std::size_t sinks = 0;
  std::size_t tail = 0;
  std::size_t sealed = 0;
  std::size_t shared = 0;  ///< table entries that a fork takes over
};

/// Entries first to last - 1 of a page table.
struct EntryRange {
  std::size_t first;
  std::size_t last;
  [[nodiscard]] std::size_t size() const { return last - first; }
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
  /// Sealed positions before this one were freed by the window.
  [[nodiscard]] std::int64_t first_kept() const { return first_kept_; }
  /// Position of the tail's first token; sinks lie before it.
  [[nodiscard]] std::int64_t tail_start() const { return tail_start_; }
  [[nodiscard]] const Buffer<PageEntry>& entries() const { return entries_; }
  /// Entries that are sealed pages: sinks come before, the tail's blocks behind.
  [[nodiscard]] EntryRange sealed_range() const {
    EntryRange range{0, entries_.size()};
    while (range.first < range.last && entries_[range.first].kind == PageKind::Sinks) ++range.first;
    while (range.last > range.first && entries_[range.last - 1].kind == PageKind::Tail)
      --range.last;
    return range;
  }
  /// Entries and tokens by kind; any thread may read them at any time.
  [[nodiscard]] const EntryCounts& counts() const { return counts_; }

  /// Blocks this layer lacks to hold `length` tokens.
  [[nodiscard]] BlockCounts missing_for(std::int64_t length) const {
    BlockCounts missing;
    if (placement_.sink_tokens > 0 && sink_block_.data == nullptr && length > 0) missing.sinks = 1;
    const std::size_t blocks = placement_.ring_blocks_for(length);
    if (blocks > ring_.size()) missing.tail = blocks - ring_.size();
    missing.sealed =
        missing_pages(length, spare_.size(), [&](std::size_t i) { return old_page(i, false); });
    return missing;
  }

  /// Makes room in the tables for `missing`; false if there is no memory, and then some tables may
  /// have grown.
  [[nodiscard]] bool reserve_tables(const BlockCounts& missing) {
    const TableSizes sizes = table_sizes(missing);
    return entries_.reserve(sizes.entries) && ring_.reserve(sizes.ring) &&
           spare_.reserve(sizes.spare);
  }

  /// Bytes by which reserve_tables(missing) would grow the tables.
  [[nodiscard]] std::size_t missing_table_bytes(const BlockCounts& missing) const {
    const TableSizes sizes = table_sizes(missing);
    return entries_.missing_bytes(sizes.entries) + ring_.missing_bytes(sizes.ring) +
           spare_.missing_bytes(sizes.spare);
  }

  /// Bytes of the tables, used or not.
  [[nodiscard]] std::size_t reserved_table_bytes() const {
    return entries_.capacity_bytes() + ring_.capacity_bytes() + spare_.capacity_bytes();
  }

  void give_sink_block(const Block& block) { sink_block_ = block; }
  void give_tail_block(const Block& block) { ring_.push_back(block); }
  void give_page(const Block& page) { spare_.push_back(page); }

  /// Calls sinks(block), tail(block) or sealed(page) for everything this layer holds, shared pages
  /// included.
  template <class Sinks, class Tail, class Sealed>
  void for_each_block(Sinks sinks, Tail tail, Sealed sealed) const {
    if (sink_block_.data != nullptr) sinks(sink_block_);
    for (std::size_t i = 0; i < ring_.size(); ++i) tail(ring_[i]);
    for (std::size_t i = 0; i < spare_.size(); ++i) sealed(spare_[i]);
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i].kind == PageKind::Sealed)
        sealed(Block{entries_[i].data, entries_[i].references});
  }

  /// Where `tokens` new tokens go: into a 16-bit block, from slot `slot` on.
  struct Placed {
    PageKind kind;
    std::byte* block;
    int slot;
    int tokens;
  };
  /// Adds up to `tokens` tokens: as many as fit in the newest block, at least one. The caller has
  /// checked the capacity and sealed what must_seal() asked for.
  [[nodiscard]] Placed place_tokens(std::int64_t tokens) {
    std::int64_t room = placement_.sink_tokens - length_;
    if (room > 0) {
      if (length_ == 0) add_entry(sink_block_, 0, 0, PageKind::Sinks);
    } else {
      const std::int64_t offset = length_ - tail_start_;
      room = placement_.page_tokens - offset % placement_.page_tokens;
      if (room == placement_.page_tokens) {
        const std::size_t index = static_cast<std::size_t>(offset / placement_.page_tokens);
        add_entry(ring_[(ring_head_ + index) % ring_.size()], length_, 0, PageKind::Tail);
      }
    }
    PageEntry& entry = entries_.back();
    const int placed = static_cast<int>(std::min(room, tokens));
    const int slot = entry.tokens;
    length_ += placed;
    entry.tokens += placed;
    counts_.add(entry.kind, 0, placed);
    return {entry.kind, entry.data, slot, placed};
  }

  /// Tokens that can be added before a page is sealed.
  [[nodiscard]] std::int64_t tokens_before_seal() const {
    return placement_.tokens_before_seal(tail_start_, length_);
  }

  /// Whether the tail's first block is full and, once the layer holds `length` tokens, older than the
  /// recent ones. It can then be sealed before those are added, while its bytes are in the CPU's cache.
  [[nodiscard]] bool must_seal(std::int64_t length) const {
    return length_ - tail_start_ >= placement_.page_tokens &&
           length - tail_start_ >= placement_.recent_tokens + placement_.page_tokens;
  }

  /// The 16-bit block to quantize, and the page to quantize it into.
  struct Sealing {
    const std::byte* block;
    std::byte* page;
  };
  /// Replaces the tail's first block by a sealed page in the table; the caller then fills the page.
  [[nodiscard]] Sealing seal() {
    free_outside_window();
    const Block page = spare_.pop_back();
    PageEntry& entry = entries_[sealed_range().last];
    const Sealing sealing{entry.data, page.data};
    entry.data = page.data;
    entry.references = page.references;
    entry.kind = PageKind::Sealed;
    counts_.add(PageKind::Tail, -1, -entry.tokens);
    counts_.add(PageKind::Sealed, 1, entry.tokens);
    tail_start_ += placement_.page_tokens;
    if (length_ > tail_start_) ring_head_ = (ring_head_ + 1) % ring_.size();
    return sealing;
  }

  /// Whether the token at `length` would see one that the window has freed.
  [[nodiscard]] bool needs_freed_tokens(std::int64_t length) const {
    return placement_.needs_freed_tokens(first_kept_, length_, length);
  }

  /// Removes all tokens from `length` on. A cut inside a sealed page leaves it with fewer tokens, and
  /// an empty tail starts behind it.
  void truncate(std::int64_t length) {
    if (length >= length_) return;
    while (entries_.size() > 0 && entries_.back().first_position >= length)
      drop(entries_.pop_back());
    length_ = length;
    if (entries_.size() > 0) {
      PageEntry& last = entries_.back();
      const std::int64_t cut = std::max<std::int64_t>(0, end_of(last) - length);
      last.tokens -= static_cast<std::int32_t>(cut);
      counts_.add(last.kind, 0, -cut);
    }
    if (length < tail_start_) {
      tail_start_ = std::max<std::int64_t>(length, placement_.sink_tokens);
      ring_head_ = 0;
    }
    first_kept_ = length <= placement_.sink_tokens ? 0 : std::min(first_kept_, length);
  }

  /// Finds the sealed pages, entries first to last - 1, that hold exactly what the window has left of
  /// positions `from` to `to` - 1 (first = last if that is nothing). False if no pages match.
  [[nodiscard]] bool find_pages(std::int64_t from, std::int64_t to, std::size_t& first,
                                std::size_t& last) const {
    const auto sealed = [&](std::size_t i) {
      return i < entries_.size() && entries_[i].kind == PageKind::Sealed;
    };
    first = last = 0;
    if (from < placement_.sink_tokens || from >= to) return false;
    if (to <= first_kept_) return true;
    from = std::max(from, first_kept_);
    while (first < entries_.size() && entries_[first].first_position != from) ++first;
    std::int64_t end = from;
    for (last = first; end < to && sealed(last) && entries_[last].first_position == end; ++last)
      end += entries_[last].tokens;
    return last > first && end == to;
  }

  /// Drops entries first to last - 1, all sealed pages. The others keep their positions.
  void remove_pages(std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) drop(entries_[i]);
    entries_.erase(first, last);
  }

  /// Blocks that a fork of this layer needs to grow to `length` tokens: its own 16-bit blocks, and
  /// pages for all that is sealed later, as it takes over no spare pages.
  [[nodiscard]] BlockCounts fork_needs(std::int64_t length) const {
    BlockCounts needs;
    needs.sinks = placement_.sink_tokens > 0 && length > 0 ? 1 : 0;
    needs.tail = placement_.ring_blocks_for(length);
    needs.sealed = missing_pages(length, 0, [&](std::size_t i) { return old_page(i, true); });
    needs.shared = entries_.size();
    return needs;
  }

  /// First step of loading into an empty layer: takes over the saved positions and returns the blocks
  /// that growing to `length` tokens needs. Once they are given, place_loaded() is the second step.
  ///
  /// page  page(i): the i-th SavedPage
  template <class Page>
  [[nodiscard]] BlockCounts load(const SavedLayer& saved, std::int64_t saved_length,
                                 std::int64_t length, Page page) {
    tail_start_ = saved.tail_start;
    length_ = saved_length;
    first_kept_ = saved.first_kept;
    BlockCounts needs;
    needs.sinks = placement_.sink_tokens > 0 && length > 0 ? 1 : 0;
    needs.tail = placement_.ring_blocks_for(length);
    const auto old = [&](std::size_t i) -> std::optional<OldPage> {
      if (i >= static_cast<std::size_t>(saved.pages)) return {};
      const SavedPage one = page(i);
      return OldPage{one.first_position + one.tokens, true};
    };
    needs.sealed = static_cast<std::size_t>(saved.pages) + missing_pages(length, 0, old);
    return needs;
  }

  /// Second step of loading: enters the saved pages and the blocks of sinks and tail into the table.
  /// The caller then fills in their bytes.
  template <class Page>
  void place_loaded(const SavedLayer& saved, Page page) {
    if (length_ > 0 && placement_.sink_tokens > 0)
      add_entry(sink_block_, 0, std::min<std::int64_t>(length_, placement_.sink_tokens),
                PageKind::Sinks);
    for (std::size_t i = 0; i < static_cast<std::size_t>(saved.pages); ++i) {
      const SavedPage one = page(i);
      add_entry(spare_.pop_back(), one.first_position, one.tokens, PageKind::Sealed);
    }
    for (std::int64_t at = tail_start_, block = 0; at < length_;
         at += placement_.page_tokens, ++block)
      add_entry(ring_[static_cast<std::size_t>(block)], at,
                std::min<std::int64_t>(length_ - at, placement_.page_tokens), PageKind::Tail);
  }

  /// Becomes a copy of `parent`: shares its sealed pages, copies its 16-bit blocks. The blocks and
  /// tables of fork_needs() must have been given.
  void copy_from(const SequenceLayer& parent, std::size_t sink_bytes, std::size_t tail_bytes) {
    std::size_t tail_blocks = 0;
    for (std::size_t i = 0; i < parent.entries_.size(); ++i) {
      const PageEntry& entry = parent.entries_[i];
      Block block{entry.data, entry.references};
      if (entry.kind == PageKind::Sealed) {
        share_page(entry.references);
      } else {
        const bool sinks = entry.kind == PageKind::Sinks;
        block = sinks ? sink_block_ : ring_[tail_blocks++];
        std::memcpy(block.data, entry.data, sinks ? sink_bytes : tail_bytes);
      }
      add_entry(block, entry.first_position, entry.tokens, entry.kind);
    }
    ring_head_ = 0;
    tail_start_ = parent.tail_start_;
    length_ = parent.length_;
    first_kept_ = parent.first_kept_;
  }

 private:
  struct TableSizes {
    std::size_t entries;
    std::size_t ring;
    std::size_t spare;
  };
  [[nodiscard]] TableSizes table_sizes(const BlockCounts& missing) const {
    const std::size_t pages =
        sealed_range().size() + spare_.size() + missing.sealed + missing.shared;
    return {pages + static_cast<std::size_t>(placement_.ring_blocks()) + 1,
            ring_.size() + missing.tail, pages};
  }

  /// A page that the window may free: where it ends, and whether this layer can then reuse it.
  struct OldPage {
    std::int64_t end;
    bool comes_back;
  };
  [[nodiscard]] std::optional<OldPage> old_page(std::size_t i, bool all_shared) const {
    if (i >= entries_.size()) return {};
    const PageEntry& entry = entries_[i];
    const bool own =
        entry.kind == PageKind::Sealed && !all_shared && !is_shared_page(entry.references);
    return OldPage{end_of(entry), own};
  }

  /// Pages that growing to `length` tokens needs beyond `spare` ones; those that the window frees on
  /// the way are reused, unless shared. old(i): the i-th entry, oldest first; nothing past the last.
  template <class Old>
  [[nodiscard]] std::size_t missing_pages(std::int64_t length, std::size_t spare, Old old) const {
    std::int64_t seals = placement_.seals(tail_start_, length);
    if (placement_.window == 0)
      return static_cast<std::size_t>(seals) -
             std::min<std::size_t>(static_cast<std::size_t>(seals), spare);
    // Once a window's worth of pages is sealed, each new one frees an old one.
    seals = std::min<std::int64_t>(seals, placement_.window / placement_.page_tokens + 2);
    std::size_t missing = 0;
    std::size_t next = 0;        // the old page that the window frees next
    std::int64_t new_pages = 0;  // pages sealed in this loop that the window has freed again
    for (std::int64_t i = 0; i < seals; ++i) {
      const std::int64_t start = tail_start_ + i * placement_.page_tokens;
      const std::int64_t cut =
          placement_.free_until(start + placement_.page_tokens + placement_.recent_tokens);
      for (auto page = old(next); page && page->end <= cut; page = old(++next))
        if (page->comes_back) ++spare;
      for (; tail_start_ + (new_pages + 1) * placement_.page_tokens <= cut && new_pages < i;
           ++new_pages)
        ++spare;
      if (spare > 0)
        --spare;
      else
        ++missing;
    }
    return missing;
  }

  [[nodiscard]] static std::int64_t end_of(const PageEntry& entry) {
    return entry.first_position + entry.tokens;
  }

  void add_entry(const Block& block, std::int64_t first_position, std::int64_t tokens,
                 PageKind kind) {
    entries_.push_back(
        {block.data, first_position, static_cast<std::int32_t>(tokens), kind, block.references});
    counts_.add(kind, 1, tokens);
  }

  /// Gives up an entry. The last sequence that holds a page keeps it as a spare one.
  void drop(const PageEntry& entry) {
    counts_.add(entry.kind, -1, -entry.tokens);
    if (entry.kind == PageKind::Sealed && leave_page(entry.references))
      spare_.push_back({entry.data, entry.references});
  }

  /// Frees pages as of the length at which the tail's first block must be sealed at the latest: how
  /// many tokens are appended at once does not matter.
  void free_outside_window() {
    const std::int64_t cut =
        placement_.free_until(tail_start_ + placement_.recent_tokens + placement_.page_tokens);
    const EntryRange sealed = sealed_range();
    std::size_t last = sealed.first;
    while (last < sealed.last && end_of(entries_[last]) <= cut)
      first_kept_ = end_of(entries_[last++]);
    remove_pages(sealed.first, last);
  }

  TokenPlacement placement_;
  Buffer<PageEntry> entries_;  ///< sinks, sealed pages, tail blocks in use
  EntryCounts counts_;         ///< of entries_
  Buffer<Block> ring_;         ///< tail blocks; ring_head_ moves only once all are there
  Buffer<Block> spare_;        ///< reserved pages that hold no tokens
  Block sink_block_;
  std::size_t ring_head_ = 0;  ///< index of the block at which the tail starts
  std::int64_t tail_start_;    ///< position of the tail's first token
  std::int64_t length_ = 0;
  std::int64_t first_kept_ = 0;  ///< 0 where there are sinks alone: no window frees those
};

}  // namespace kvtilt
