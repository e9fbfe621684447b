// SPDX-License-Identifier: MIT
/// The decode attention kernel: one launch over the sinks, sealed pages and tails of a batch. A block
/// works through its stretch of the line of units (work.hpp); its part of an item is a segment. Warps
/// take units in turn, and the last block to finish an item merges all blocks' parts. While a segment
/// is finished, the first units of the next are loading.
#pragma once

#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/merge.hpp>
#include <kvtilt/cuda/attention/mixed_pages.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Attends to one warp's units of a segment, read from global memory.
template <class Traits, class Threads>
KVTILT_HD void attend_generic_units(Threads& threads, const AttendArguments& arguments,
                                    const Segment& segment, const QueryTile<Traits::key_dim>& query,
                                    typename Traits::State& state) {
  const LayerView& layer = arguments.layer;
  const ItemRows& rows = segment.rows;
  const int warps = threads.thread_count() / warp_lanes;
  const int tiles = segment.counts.tiles();
  const int page_units = units_of_page<Traits>(layer);
  const int ahead = page_units > warps ? page_units : warps;  // prefetch distance
  const PageSlot* table = layer.table(segment.slot) + segment.sequence.first_page;
  const PlainRange plain = rows.plain(arguments);
  KVTILT_DEVICE_LOOP
  for (int unit = segment.first + threads.warp(); unit < segment.last; unit += warps) {
    const int later = unit + ahead - tiles;
    if (later >= 0 && later < segment.last - tiles)
      prefetch_unit(threads, layer, layer.head(PageKind::Sealed, rows.kv_head), table, later,
                    page_units);
    TokenTile tile;
    PageKind kind = PageKind::Sealed;
    if (unit < tiles) {
      tile =
          half_tile(layer, layer.page_tokens, segment.slot, segment.sequence, segment.counts, unit);
      kind = tile.sink ? PageKind::Sinks : PageKind::Tail;
    } else {
      tile = sealed_tile(layer, table, unit - tiles, page_units);
    }
    const HeadLayout& head = layer.head(kind, rows.kv_head);
    const std::byte* block = tile.block + head.offset;
    const bool special = plain.excludes(tile.first_position, tile.tokens, tile_extent);
    attend_tile<Traits::key_dim, Traits::value_dim>(
        threads, arguments, rows, typename Traits::KeyFragments{&head.key, block, tile.index},
        Traits::values(threads, head, block, tile.index), tile.first_position, tile.tokens,
        tile.sink, special, query, state);
  }
}

/// Attends to one warp's units of a segment, from its ring.
template <class Traits, class Ring, class Threads>
KVTILT_HD void attend_units(Threads& threads, const AttendArguments& arguments,
                            const Segment& segment, const QueryTile<Traits::key_dim>& query,
                            Ring& ring, typename Traits::State& state) {
  const ItemRows& rows = segment.rows;
  const int warps = threads.thread_count() / warp_lanes;
  const int last = segment.last;
  KVTILT_DEVICE_LOOP
  for (int unit = segment.first + threads.warp(); unit < last; unit += warps) {
    ring.fetch(threads);
    std::byte* data = ring.take(threads);
    RingUnit taken{0, Traits::page_tokens / Traits::page_units, PageKind::Sealed, false};
    if (!ring.is_plain()) [[unlikely]]
      taken = ring.taken(threads);
    if (Traits::page_units > 1 || taken.kind != PageKind::Sealed) {
      attend_tile<Traits::key_dim, Traits::value_dim>(
          threads, arguments, rows, HalfFragments{data},
          HalfFragments{data + half_tile_bytes(Traits::key_dim)}, taken.first_position,
          taken.tokens, taken.kind == PageKind::Sinks, taken.special, query, state);
    } else if constexpr (Traits::page_units == 1) {
      attend_page<Traits>(threads, arguments, rows, data, taken.first_position, taken.tokens,
                          taken.special, query, state);
    }
    ring.release(threads);
  }
}

/// Computes one warp's part of a segment; leaves its sums in the ring's free stage.
template <class Traits, class Ring, class Threads>
KVTILT_HD void attend_segment(Traits, Threads& threads, const AttendArguments& arguments,
                              const AttendShared& shared, const Segment& segment,
                              const QueryTile<Traits::key_dim>& query, Ring& ring) {
  typename Traits::State state;
  state.clear();
  if constexpr (Traits::generic)
    attend_generic_units<Traits>(threads, arguments, segment, query, state);
  else
    attend_units<Traits>(threads, arguments, segment, query, ring, state);
  store_warp<Traits>(threads, shared, ring.free_stage(), state);
}
template <class... Pages, class Ring, class Threads>
KVTILT_HD void attend_segment(MixedTraits<Pages...> mixed, Threads& threads,
                              const AttendArguments& arguments, const AttendShared& shared,
                              const Segment& segment,
                              const QueryTile<MixedTraits<Pages...>::key_dim>& query, Ring& ring) {
  mixed.with(segment.kind, [&](auto pages) {
    attend_segment(pages, threads, arguments, shared, segment, query, ring);
  });
}

/// Writes the outputs of sequences that have no units. Writes nothing if starts[count] is -1, with
/// which plan_line() refuses the rows.
template <class Traits, class Threads>
KVTILT_HD void write_empty_sequences(Threads& threads, const AttendArguments& arguments,
                                     const int* starts) {
  if (starts[arguments.batch.count] < 0) return;
  RowPart<Traits::value_dim> nothing;
  nothing.clear();
  nothing.maximum = no_maximum;
  nothing.total = 0.0f;
  KVTILT_DEVICE_LOOP
  for (int sequence = threads.block(); sequence < arguments.batch.count;
       sequence += threads.block_count()) {
    if (starts[sequence + 1] != starts[sequence]) continue;
    KVTILT_DEVICE_LOOP
    for (int item = 0; item < arguments.layer.kv_heads * row_tiles(arguments, sequence); ++item)
      KVTILT_DEVICE_LOOP
      for (int row = threads.warp(); row < item_rows; row += threads.thread_count() / warp_lanes)
        write_item_row(threads, arguments, item_rows_of(arguments, sequence, item), row, nothing);
  }
}

/// Merges the warps' sums into the item's output, or the block's part of it; the last block to finish
/// the item merges the parts.
template <class Traits, class Threads>
KVTILT_HD void finish_segment(Threads& threads, const AttendArguments& arguments,
                              const AttendShared& shared, const WorkLine& line,
                              const Segment& segment) {
  std::uint32_t* flag = reinterpret_cast<std::uint32_t*>(threads.shared() + shared.flag);
  const AttendWorkspace& workspace = arguments.workspace;
  const int warps = threads.thread_count() / warp_lanes;
  // Before the sync, where early warps would only wait.
  const ItemParts parts = ItemParts::of(line, segment.item_start, segment.counts.total());
  threads.sync();
  const bool whole = parts.first == parts.last;
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < segment.rows.rows; row += warps) {
    const RowPart<Traits::value_dim> part = merge_warps<Traits>(threads, shared, row);
    if (whole)
      write_item_row(threads, arguments, segment.rows, row, part);
    else
      store_part(threads, workspace, parts.slot(threads.block()) * item_rows + row, part);
  }
  if (whole || !last_to_arrive(threads, workspace, parts, flag)) return;
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < segment.rows.rows; row += warps)
    write_item_row(threads, arguments, segment.rows, row,
                   merge_blocks<Traits::value_dim>(threads, workspace, parts, item_rows, row));
}

/// Records a sequence whose oldest query would see tokens that the layer's window has freed. Its rows
/// attend to what is left. Leaves rows that are not sound to plan_line(), which refuses them.
template <class Threads>
KVTILT_HD void report_freed(const Threads& threads, const AttendArguments& arguments, int index,
                            const SeenSequence& sequence) {
  const AttendRules& rules = arguments.rules;
  const int new_tokens = arguments.new_tokens(index);
  const std::int64_t oldest = oldest_in_window(rules, new_tokens, sequence.state);
  if (new_tokens == 0 || oldest >= sequence.state.first_kept || rules.end_position <= oldest ||
      !arguments.rows.are_sound(index, arguments.row_count))
    return;
  record_error(
      threads, arguments.layer.records,
      sequence_fault(DeviceFault::WindowFreed, arguments.layer.layer, sequence.slot, oldest));
}

/// Prefetches a sequence's page table into L2 during planning, each line by one block.
template <class Threads>
KVTILT_HD void prefetch_table(const Threads& threads, const PageSlot* table,
                              const SequenceState& state) {
  constexpr int line = 128 / static_cast<int>(sizeof(PageSlot));
  KVTILT_DEVICE_LOOP
  for (int entry = state.first_page + line * threads.block(); entry < state.page_end;
       entry += line * threads.block_count())
    threads.prefetch(reinterpret_cast<const std::byte*>(table + entry));
}

template <class Traits, class Threads>
KVTILT_HD void attend_block(Threads& threads, const AttendArguments& arguments) {
  const int count = arguments.batch.count;
  const int page_units = units_of_page<Traits>(arguments.layer);
  const AttendShared shared =
      AttendShared::of<Traits>(threads.thread_count() / warp_lanes, arguments.stages, count);
  int* starts = reinterpret_cast<int*>(threads.shared() + shared.starts);
  BlockWork& work = *reinterpret_cast<BlockWork*>(threads.shared() + shared.work);
  SeenSequence own;
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < count; i += threads.thread_count()) {
    own = SeenSequence::of(arguments, i, page_units);
    starts[i + 1] = own.counts.total();
    if (arguments.layer.window > 0 && threads.block() == 0)
      report_freed(threads, arguments, i, own);
    prefetch_table(threads, arguments.layer.table(own.slot), own.state);
  }
  threads.sync();
  if constexpr (!Traits::generic)
    if (threads.warp() == threads.thread_count() / warp_lanes - 1)
      UnitRing<Traits>::prepare(threads, shared, arguments.stages);
  if (threads.warp() == 0) {
    const WorkLine line = plan_line(threads, arguments, starts);
    if (threads.lane() == 0) work.begin(line, threads.block());
    threads.sync_warp();
    if (count <= warp_lanes) work.template set_first<Traits>(threads, arguments, starts, line, own);
    threads.sync_warp();
  }

  UnitRing<Traits> ring(threads, shared, arguments, Traits::generic ? 1 : arguments.stages);
  KVTILT_DEVICE_LOOP
  for (int turn = 0;; ++turn) {
    if (threads.thread() == 0)
      work.template find_segments<Traits>(arguments, starts, threads.block(), turn);
    threads.sync();
    if (turn == 0) write_empty_sequences<Traits>(threads, arguments, starts);
    const Segment& segment = work.segments[turn % 2];
    const Segment& after = work.segments[(turn + 1) % 2];
    if (!segment.exists()) return;
    if constexpr (!Traits::generic) {
      ring.enter(threads, segment);
      ring.fill(threads);
      ring.follow(after.exists() ? &after : nullptr);
    }
    QueryTile<Traits::key_dim> query;  // arrives no later than the first unit
    query.load(threads, arguments, segment.rows);
    attend_segment(Traits{}, threads, arguments, shared, segment, query, ring);
    finish_segment<Traits>(threads, arguments, shared, work.line, segment);
    if (!after.exists()) return;
    threads.hand_over_shared();  // units are copied over the outputs
    threads.sync();
  }
}

}  // namespace kvtilt::cuda
