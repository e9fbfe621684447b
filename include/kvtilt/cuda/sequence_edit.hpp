// SPDX-License-Identifier: MIT
/// What happens to a sequence's length and page table when tokens are taken back: the arithmetic of
/// SequenceLayer (cache/sequence_layer.hpp) for a table in device memory.
///
///     entries   0 .. first_page | first_page .. page_end | page_end .. page_capacity
///               freed           | in use                 | unused pages
///
/// A page that a sequence lets go of becomes an unused one, unless it may be shared: then its entry
/// leaves the table, to lie just behind page_capacity, where the host looks for it. All threads of a
/// block call these together, with the same arguments, and all see the result.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/layer_storage.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// First entry in use whose page starts at `position` or later; page_end if there is none.
KVTILT_HD inline std::int32_t find_entry(const SequenceState& state, const PageSlot* table,
                                         std::int64_t position) {
  std::int32_t first = state.first_page;
  std::int32_t last = state.page_end;
  while (first < last) {
    const std::int32_t middle = first + (last - first) / 2;
    if (table[middle].first_position < position)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

template <class Threads>
KVTILT_HD void reverse_entries(const Threads& threads, PageSlot* table, std::int32_t first,
                               std::int32_t last) {
  for (std::int32_t i = threads.thread(); i < (last - first) / 2; i += threads.thread_count()) {
    const PageSlot moved = table[first + i];
    table[first + i] = table[last - 1 - i];
    table[last - 1 - i] = moved;
  }
  threads.sync();
}

/// Entries middle to last-1 come first, then first to middle-1.
template <class Threads>
KVTILT_HD void rotate_entries(const Threads& threads, PageSlot* table, std::int32_t first,
                              std::int32_t middle, std::int32_t last) {
  if (first == middle || middle == last) return;
  reverse_entries(threads, table, first, middle);
  reverse_entries(threads, table, middle, last);
  reverse_entries(threads, table, first, last);
}

/// Whether the window has freed a token that the token at `length` would see.
KVTILT_HD inline bool lost_before(const LayerStorage& storage, const SequenceState& state,
                                  std::int64_t length) {
  if (length >= state.length) return false;
  const std::int64_t seen = length - storage.window + 1;
  const std::int64_t oldest = seen > storage.sink_tokens ? seen : storage.sink_tokens;
  return oldest < (state.first_kept < length ? state.first_kept : length);
}

/// Forgets all tokens from `length` on.
template <class Threads>
KVTILT_HD void truncate_entries(const Threads& threads, const LayerStorage& storage,
                                SequenceState& where, PageSlot* table, std::int64_t length) {
  SequenceState state = where;
  if (length >= state.length) return;
  const std::int32_t kept = find_entry(state, table, length);
  const std::int32_t lost = state.shared_end > kept ? state.shared_end - kept : 0;
  threads.sync();  // all have read the state and the table
  rotate_entries(threads, table, kept, kept + lost, state.page_capacity);
  state.page_end = kept;
  state.page_capacity -= lost;
  state.shared_end -= lost;
  state.length = length;
  if (length < state.tail_start) {
    state.tail_start = length > storage.sink_tokens ? length : storage.sink_tokens;
    state.ring_head = 0;
  }
  if (length < state.first_kept) state.first_kept = length;
  if (threads.thread() == 0) {
    if (kept > state.first_page) {
      PageSlot& cut = table[kept - 1];
      const std::int64_t tokens = length - cut.first_position;
      if (tokens < cut.tokens) cut.tokens = static_cast<std::int32_t>(tokens);
    }
    where = state;
  }
  threads.sync();
}

/// Entries in use.
struct EntryRange {
  std::int32_t first;
  std::int32_t last;
};

/// The pages that hold exactly the positions from `from` to `to`-1; empty if there are none such.
KVTILT_HD inline EntryRange find_pages(const SequenceState& state, const PageSlot* table,
                                       std::int64_t from, std::int64_t to) {
  const EntryRange found{find_entry(state, table, from), find_entry(state, table, to)};
  if (found.first >= found.last || table[found.first].first_position != from) return {0, 0};
  const PageSlot& end = table[found.last - 1];
  return end.first_position + end.tokens == to ? found : EntryRange{0, 0};
}

/// Drops entries in use. Positions of the others stay as they are.
template <class Threads>
KVTILT_HD void remove_entries(const Threads& threads, SequenceState& where, PageSlot* table,
                              EntryRange range) {
  SequenceState state = where;
  const std::int32_t count = range.last - range.first;
  if (count <= 0) return;
  std::int32_t lost = state.shared_end - range.first;
  lost = lost < 0 ? 0 : lost > count ? count : lost;
  const std::int32_t end = state.page_capacity;
  threads.sync();  // all have read the state and the table
  rotate_entries(threads, table, range.first, range.last, end);
  rotate_entries(threads, table, end - count, end - count + lost, end);
  state.page_end -= count;
  state.page_capacity -= lost;
  state.shared_end -= lost;
  if (threads.thread() == 0) where = state;
  threads.sync();
}

/// Lets go of the entries before `end`, which the window has passed; one thread alone calls it. A
/// page for which the table has no room is lost until the sequence is closed.
KVTILT_HD inline void free_entries(const LayerStorage& storage, SequenceState& state,
                                   PageSlot* table, std::int32_t end) {
  for (; state.first_page < end; ++state.first_page)
    if (state.first_page >= state.shared_end && state.page_capacity < storage.table_stride)
      table[state.page_capacity++] = {0, table[state.first_page].page, 0};
}

/// Of a sequence without tokens or pages.
KVTILT_HD inline SequenceState empty_state(const LayerStorage& storage) {
  SequenceState state{};
  state.tail_start = storage.sink_tokens;
  return state;
}

/// Entries and lengths of a second sequence with the same tokens. Its pages, and those of the first
/// sequence that are in use, count as shared from then on. 16-bit blocks must be copied.
template <class Threads>
KVTILT_HD void fork_entries(const Threads& threads, SequenceState& from, const PageSlot* from_table,
                            SequenceState& to, PageSlot* to_table) {
  SequenceState state = from;
  const std::int32_t count = state.page_end - state.first_page;
  for (std::int32_t i = threads.thread(); i < count; i += threads.thread_count())
    to_table[i] = from_table[state.first_page + i];
  threads.sync();
  if (threads.thread() == 0) {
    from.shared_end = state.page_end;
    state.first_page = 0;
    state.page_end = count;
    state.page_capacity = count;
    state.shared_end = count;
    state.ring_head = 0;
    to = state;
  }
  threads.sync();
}

/// Adds unused pages: page first, first + 1, and so on. False if the table has no room.
template <class Threads>
KVTILT_HD bool give_pages(const Threads& threads, SequenceState& where, PageSlot* table,
                          std::int64_t table_stride, std::int32_t first, std::int32_t count) {
  const std::int32_t end = where.page_capacity;
  if (end + static_cast<std::int64_t>(count) > table_stride) return false;
  for (std::int32_t i = threads.thread(); i < count; i += threads.thread_count())
    table[end + i] = {0, first + i, 0};
  threads.sync();
  if (threads.thread() == 0) where.page_capacity = end + count;
  threads.sync();
  return true;
}

/// Tail blocks in use.
KVTILT_HD inline int tail_blocks(const LayerStorage& storage, const SequenceState& state) {
  const std::int64_t tokens = state.length - state.tail_start;
  return tokens <= 0 ? 0
                     : static_cast<int>((tokens + storage.page_tokens - 1) / storage.page_tokens);
}

}  // namespace kvtilt::cuda
