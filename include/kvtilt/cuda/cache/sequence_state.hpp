// SPDX-License-Identifier: MIT
/// Changes of a SequenceState and its page table: the arithmetic of cache/sequence_layer.hpp for
/// tables in device memory. The threads of one block work on a table together; on the host,
/// SingleThread stands for them.
///
///     table    | pages that hold tokens | unused pages | nothing |
///              0 = first_page           page_end       page_capacity
///
/// A dropped page moves to the front of the unused ones, so the next seal takes what was freed
/// last. A page that a fork may share leaves the table instead: page_capacity shrinks, and the
/// sequence must reserve again.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/page/saved_sequence.hpp>
#include <kvtilt/page/token_placement.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// A block of one thread.
struct SingleThread {
  [[nodiscard]] KVTILT_HD int thread() const { return 0; }
  [[nodiscard]] KVTILT_HD int thread_count() const { return 1; }
  KVTILT_HD void sync() const {}
};

/// An empty sequence whose table holds `pages` unused pages.
KVTILT_HD constexpr SequenceState empty_state(const TokenPlacement& placement, std::int32_t pages) {
  SequenceState state{};
  state.tail_start = placement.sink_tokens;
  state.page_capacity = pages;
  return state;
}

/// A loaded sequence: its pages are the first entries of a table of `capacity`.
KVTILT_HD constexpr SequenceState loaded_state(const SavedLayer& saved, std::int64_t length,
                                               std::int32_t capacity) {
  SequenceState state{};
  state.length = length;
  state.tail_start = saved.tail_start;
  state.first_kept = saved.first_kept;
  state.page_end = saved.pages;
  state.page_capacity = capacity;
  return state;
}

KVTILT_HD constexpr std::int64_t end_of(const PageSlot& slot) {
  return slot.first_position + slot.tokens;
}

/// The first entry that holds a token at `position` or later; page_end if none does.
KVTILT_HD constexpr std::int32_t entry_at(const SequenceState& state, const PageSlot* table,
                                          std::int64_t position) {
  std::int32_t low = state.first_page;
  std::int32_t high = state.page_end;
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (end_of(table[middle]) <= position)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/// Keeps only those pages in use that hold positions from `from` to end - 1. If that range is
/// empty, the page that it lies in may stay.
KVTILT_HD constexpr void keep_pages(SequenceState& state, const PageSlot* table, std::int64_t from,
                                    std::int64_t end) {
  state.first_page = entry_at(state, table, from);
  const std::int32_t last = entry_at(state, table, end);
  const bool begins = last < state.page_end && table[last].first_position < end;
  state.page_end = last + (begins ? 1 : 0);
}

namespace detail {

template <class Threads>
KVTILT_HD void reverse_slots(const Threads& threads, PageSlot* slots, std::int32_t count) {
  for (std::int32_t i = threads.thread(); i < count / 2; i += threads.thread_count()) {
    const PageSlot slot = slots[i];
    slots[i] = slots[count - 1 - i];
    slots[count - 1 - i] = slot;
  }
  threads.sync();
}

/// Rotates left: the first `by` slots become the last ones; the order is otherwise kept.
template <class Threads>
KVTILT_HD void rotate_slots(const Threads& threads, PageSlot* slots, std::int32_t count,
                            std::int32_t by) {
  if (by == 0 || by == count) return;
  reverse_slots(threads, slots, by);
  reverse_slots(threads, slots + by, count - by);
  reverse_slots(threads, slots, count);
}

KVTILT_HD constexpr std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

}  // namespace detail

/// Drops entries `first` to last - 1, all of which hold tokens. All threads call it with equal
/// copies of the state, which stay equal.
template <class Threads>
KVTILT_HD void drop_pages(const Threads& threads, SequenceState& state, PageSlot* table,
                          std::int32_t first, std::int32_t last) {
  const std::int32_t dropped = last - first;
  if (dropped <= 0) return;
  const std::int32_t shared =
      detail::smaller(state.shared_end, last) - detail::smaller(state.shared_end, first);
  detail::rotate_slots(threads, table + first, state.page_end - first, dropped);
  state.page_end -= dropped;
  detail::rotate_slots(threads, table + state.page_end, state.page_capacity - state.page_end,
                       shared);
  state.page_capacity -= shared;
  state.shared_end -= shared;
}

/// Drops all tokens from `length` on. A cut inside a sealed page leaves that page with fewer
/// tokens, and the tail starts anew behind it.
template <class Threads>
KVTILT_HD void truncate(const Threads& threads, const TokenPlacement& placement,
                        SequenceState& state, PageSlot* table, std::int64_t length) {
  if (length >= state.length) return;
  std::int32_t kept = entry_at(state, table, length);
  if (kept < state.page_end && table[kept].first_position < length) ++kept;
  threads.sync();  // all threads have searched the table
  if (threads.thread() == 0 && kept > state.first_page) {
    PageSlot& last = table[kept - 1];
    if (end_of(last) > length)
      last.tokens = static_cast<std::int32_t>(length - last.first_position);
  }
  threads.sync();
  drop_pages(threads, state, table, kept, state.page_end);
  state.length = length;
  if (length < state.tail_start) {
    state.tail_start = length < placement.sink_tokens ? placement.sink_tokens : length;
    state.ring_head = 0;
  }
  if (length <= placement.sink_tokens)
    state.first_kept = 0;  // sinks alone are left: of them the window frees none
  else if (state.first_kept > length)
    state.first_kept = length;
}

/// Finds the entries that hold exactly positions `from` to to - 1, as far as the window has not
/// freed them; none if it has freed all. Returns false if no entries begin and end there. Whether
/// there is a hole between them, follows_at_once() tells.
KVTILT_HD constexpr bool find_pages(const TokenPlacement& placement, const SequenceState& state,
                                    const PageSlot* table, std::int64_t from, std::int64_t to,
                                    std::int32_t& first, std::int32_t& last) {
  first = last = state.first_page;
  if (from < placement.sink_tokens || from >= to) return false;
  if (to <= state.first_kept) return true;
  if (from < state.first_kept) from = state.first_kept;
  first = entry_at(state, table, from);
  if (first == state.page_end || table[first].first_position != from) return false;
  last = entry_at(state, table, to);
  return last > first && end_of(table[last - 1]) == to;
}

/// Whether the next entry starts at the position where this one ends.
KVTILT_HD constexpr bool follows_at_once(const PageSlot* entry) {
  return end_of(entry[0]) == entry[1].first_position;
}

/// find_pages(), and whether there is no hole between them; for one thread.
constexpr bool find_whole_pages(const TokenPlacement& placement, const SequenceState& state,
                                const PageSlot* table, std::int64_t from, std::int64_t to,
                                std::int32_t& first, std::int32_t& last) {
  bool whole = find_pages(placement, state, table, from, to, first, last);
  for (std::int32_t entry = first; whole && entry + 1 < last; ++entry)
    whole = follows_at_once(table + entry);
  return whole;
}

/// What an append will do to a sequence; every block computes the same before anything is written.
struct AppendPlan {
  bool fits;                ///< whether there are pages enough; if not, nothing may happen
  std::int64_t length;      ///< before the append
  std::int64_t tail_start;  ///< before the append
  std::int64_t tokens;      ///< to append
  std::int32_t seals;       ///< pages that leave the tail
  std::int32_t skipped;     ///< the first of those: the window frees them at once
  std::int32_t freed;       ///< entries of the table that the window frees, from first_page on
  std::int32_t recycled;    ///< the last of those: not shared, so their pages are reused
  std::int64_t first_kept;  ///< after the append

  /// Pages that are quantized.
  [[nodiscard]] KVTILT_HD constexpr std::int32_t sealed() const { return seals - skipped; }
};

KVTILT_HD constexpr AppendPlan plan_append(const TokenPlacement& placement,
                                           const SequenceState& state, const PageSlot* table,
                                           std::int64_t tokens) {
  AppendPlan plan{};
  plan.length = state.length;
  plan.tail_start = state.tail_start;
  plan.tokens = tokens;
  plan.first_kept = state.first_kept;
  plan.seals = static_cast<std::int32_t>(placement.seals(state.tail_start, state.length + tokens));
  if (placement.window > 0 && plan.seals > 0) {
    const std::int64_t span = static_cast<std::int64_t>(plan.seals) * placement.page_tokens;
    const std::int64_t cut =
        placement.free_until(state.tail_start + span + placement.recent_tokens);
    const std::int32_t end = entry_at(state, table, cut);
    plan.freed = end - state.first_page;
    const std::int32_t shared =
        state.shared_end > state.first_page ? state.shared_end - state.first_page : 0;
    plan.recycled = plan.freed - detail::smaller(shared, plan.freed);
    if (plan.freed > 0) plan.first_kept = end_of(table[end - 1]);
    if (cut - state.tail_start >= placement.page_tokens) {
      plan.skipped = static_cast<std::int32_t>((cut - state.tail_start) / placement.page_tokens);
      plan.first_kept =
          state.tail_start + static_cast<std::int64_t>(plan.skipped) * placement.page_tokens;
    }
  }
  plan.fits = plan.sealed() <= plan.recycled + state.page_capacity - state.page_end;
  return plan;
}

/// The table entry whose page takes the `index`-th quantized page.
KVTILT_HD constexpr std::int32_t entry_for(const AppendPlan& plan, const SequenceState& state,
                                           std::int32_t index) {
  return index < plan.recycled ? state.first_page + plan.freed - plan.recycled + index
                               : state.page_end + index - plan.recycled;
}
/// The page of the pool in that entry.
KVTILT_HD constexpr std::int32_t page_for(const AppendPlan& plan, const SequenceState& state,
                                          const PageSlot* table, std::int32_t index) {
  return table[entry_for(plan, state, index)].page;
}

/// Carries out the plan, once all pages are written and no other block reads the table. The caller
/// stores the state.
template <class Threads>
KVTILT_HD void finish_append(const Threads& threads, const TokenPlacement& placement,
                             const AppendPlan& plan, int ring_blocks, SequenceState& state,
                             PageSlot* table) {
  drop_pages(threads, state, table, state.first_page, state.first_page + plan.freed);
  const std::int64_t first =
      plan.tail_start + static_cast<std::int64_t>(plan.skipped) * placement.page_tokens;
  for (std::int32_t i = threads.thread(); i < plan.sealed(); i += threads.thread_count()) {
    PageSlot& slot = table[state.page_end + i];
    slot.first_position = first + static_cast<std::int64_t>(i) * placement.page_tokens;
    slot.tokens = placement.page_tokens;
  }
  state.page_end += plan.sealed();
  state.length += plan.tokens;
  state.tail_start += static_cast<std::int64_t>(plan.seals) * placement.page_tokens;
  state.ring_head = (state.ring_head + plan.seals % ring_blocks) % ring_blocks;
  state.first_kept = plan.first_kept;
}

/// Makes `child`, empty but for unused pages of its own, a copy of `parent` that shares its sealed
/// pages. The caller copies tail blocks (the ring heads are equal) and sinks, and stores both
/// states. The child's table needs room for the parent's entries.
template <class Threads>
KVTILT_HD void share_pages(const Threads& threads, SequenceState& parent,
                           const PageSlot* parent_table, SequenceState& child,
                           PageSlot* child_table) {
  const std::int32_t pages = parent.page_end - parent.first_page;
  const std::int32_t unused = child.page_capacity - child.page_end;
  // Copied behind the unused pages, then rotated to the front.
  for (std::int32_t i = threads.thread(); i < pages; i += threads.thread_count())
    child_table[unused + i] = parent_table[parent.first_page + i];
  threads.sync();
  detail::rotate_slots(threads, child_table, unused + pages, unused);
  child = parent;
  child.first_page = 0;
  child.page_end = child.shared_end = pages;
  child.page_capacity = pages + unused;
  parent.shared_end = parent.page_end;
}

}  // namespace kvtilt::cuda
