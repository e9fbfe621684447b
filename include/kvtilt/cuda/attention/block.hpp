// SPDX-License-Identifier: MIT
/// The attention kernel: one launch over sinks, sealed pages and tail of a batch. Each block takes
/// its stretch of the line of units (work.hpp), its warps take units in turn, and the last
/// block to finish an item merges what all of them left.
#pragma once

#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/merge.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Units of a sealed page.
template <class Traits>
KVTILT_HD int units_of_page(const LayerStorage& layer) {
  if constexpr (Traits::generic)
    return layer.page_tokens / tile_extent;
  else
    return Traits::page_units;
}

KVTILT_HD inline int row_tiles(const AttendArguments& arguments) {
  return ceil_div(arguments.rows(), item_rows);
}
/// Items of one sequence.
KVTILT_HD inline int items_per_sequence(const AttendArguments& arguments) {
  return arguments.layer.kv_heads * row_tiles(arguments);
}

/// The line of a launch, planned anew by each block.
struct AttendPlan {
  WorkLine line;
  int chunk;  ///< items are padded to a multiple of it: no block has parts of two. 1: they are not
  int total;  ///< units, padded
};

/// Units that an item costs a block beyond its own, where blocks get equal stretches: queries to
/// load, the first pages to wait for, parts to merge. About 8 us on an H200, at 0.5 us a unit.
inline constexpr int item_cost = 16;

/// Length of an item on the line. Nothing stands where the padding is.
KVTILT_HD constexpr int padded_units(int units, int chunk) {
  if (units == 0) return 0;
  return chunk > 1 ? ceil_div(units, chunk) * chunk : units + item_cost;
}

/// Sequences up to which chunks are looked for: more of them fill the GPU either way.
inline constexpr int max_chunked_sequences = 64;

/// Units before each sequence of the batch, in shared memory, and how they are cut. All threads.
///
/// An item costs its block some microseconds however short it is. So where there is little to do,
/// blocks get whole chunks of an item, the smallest for which there are blocks enough; where there
/// is much, equal stretches whatever item they end in.
template <class Traits, class Threads>
KVTILT_HD AttendPlan plan_units(Threads& threads, const AttendArguments& arguments, int* starts) {
  const int count = arguments.batch.count;
  const int items = items_per_sequence(arguments);
  const int warps = threads.thread_count() / warp_lanes;
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < count; i += threads.thread_count())
    starts[i + 1] = count_units(arguments.layer, arguments.layer.states[arguments.batch.slots[i]],
                                units_of_page<Traits>(arguments.layer))
                        .total();
  threads.sync();
  if (threads.warp() == 0) {
    int chunk = 1;
    if (count <= max_chunked_sequences) {
      const int own = (threads.lane() + 1) * warps;
      int chunks = 0;
      KVTILT_DEVICE_LOOP
      for (int i = 1; i <= count; ++i) chunks += ceil_div(starts[i], own);
      const std::uint32_t fitting = threads.ballot(chunks * items <= threads.block_count());
      if (fitting != 0) {
        int first = 0;
        while ((fitting >> first & 1u) == 0) ++first;
        chunk = (first + 1) * warps;
      }
      threads.sync_warp();
    }
    KVTILT_DEVICE_LOOP
    for (int i = threads.lane() + 1; i <= count; i += warp_lanes)
      starts[i] = padded_units(starts[i], chunk);
    threads.sync_warp();
    sum_up(threads, starts, count);
    if (threads.lane() == 0) starts[count + 1] = chunk;
  }
  threads.sync();
  AttendPlan plan{};
  plan.chunk = starts[count + 1];
  plan.total = starts[count] * items;
  if (plan.total > 0)
    plan.line = WorkLine::make(plan.total,
                               plan.chunk > 1 ? plan.total / plan.chunk : threads.block_count());
  return plan;
}

/// A block's share of one item.
struct Segment {
  ItemRows rows;
  int item_start;  ///< on the line
  int item_end;    ///< with its padding
  int item;        ///< number over the batch
  int first;       ///< unit of the item
  int last;        ///< one past
  int slot;        ///< of the sequence
  SequenceState sequence;
  UnitCounts counts;
  std::uint64_t head_offset;  ///< of the kv head in a sealed page
};

static_assert(sizeof(Segment) <= AttendShared::segment_bytes);

/// Rows of item `item` of a sequence; their length is for the caller to fill in.
KVTILT_HD inline ItemRows item_rows_of(const AttendArguments& arguments, int sequence, int item) {
  ItemRows rows{};
  rows.batch_index = sequence;
  rows.kv_head = item / row_tiles(arguments);
  rows.first_row = item % row_tiles(arguments) * item_rows;
  const int left = arguments.rows() - rows.first_row;
  rows.rows = left < item_rows ? left : item_rows;
  return rows;
}

/// The segment that begins at `unit` of the line.
KVTILT_HD inline Segment find_segment(const AttendArguments& arguments, const int* starts,
                                      int page_units, int unit, int end) {
  const int items = items_per_sequence(arguments);
  const int sequence = last_not_above(starts, arguments.batch.count, items, unit);
  Segment segment;
  const int item_units = starts[sequence + 1] - starts[sequence];
  const int sequence_start = starts[sequence] * items;
  const int item = (unit - sequence_start) / item_units;
  segment.item_start = sequence_start + item * item_units;
  segment.item_end = segment.item_start + item_units;
  segment.item = sequence * items + item;
  segment.first = unit - segment.item_start;
  segment.rows = item_rows_of(arguments, sequence, item);
  segment.slot = arguments.batch.slots[sequence];
  segment.sequence = arguments.layer.states[segment.slot];
  segment.rows.length = segment.sequence.length;
  segment.counts = count_units(arguments.layer, segment.sequence, page_units);
  segment.head_offset = arguments.layer.head(PageKind::Sealed, segment.rows.kv_head).offset;
  segment.last = end - segment.item_start;
  if (segment.last > segment.counts.total()) segment.last = segment.counts.total();
  return segment;
}

/// One warp's units of a segment, of any kind.
template <class Traits, class Threads>
KVTILT_HD void attend_generic_units(Threads& threads, const AttendArguments& arguments,
                                    const Segment& segment, typename Traits::State& state) {
  const LayerStorage& layer = arguments.layer;
  const ItemRows& rows = segment.rows;
  const int warps = threads.thread_count() / warp_lanes;
  const int tiles = segment.counts.tiles();
  const int page_units = units_of_page<Traits>(layer);
  const int ahead = page_units > warps ? page_units : warps;
  const PageSlot* table = layer.table(segment.slot) + segment.sequence.first_page;
  QueryTile<Traits::key_dim> query;
  query.load(threads, arguments, rows);
  const PlainRange plain = rows.plain(arguments);
  KVTILT_DEVICE_LOOP
  for (int unit = segment.first + threads.warp(); unit < segment.last; unit += warps) {
    const int later = unit + ahead - tiles;
    if (later >= 0 && later < segment.last - tiles)
      prefetch_unit(threads, layer, layer.head(PageKind::Sealed, rows.kv_head), table, later,
                    page_units);
    HalfTile tile;
    PageKind kind = PageKind::Sealed;
    if (unit < tiles) {
      tile = half_tile(layer, segment.slot, segment.sequence, segment.counts, unit);
      kind = tile.sink ? PageKind::Sinks : PageKind::Tail;
    } else {
      tile = sealed_tile(layer, table, unit - tiles, page_units);
    }
    const HeadLayout& head = layer.head(kind, rows.kv_head);
    const std::byte* block = tile.block + head.offset;
    const bool special = plain.leaves(tile.first_position, tile.tokens, tile_extent);
    attend_tile<Traits::key_dim, Traits::value_dim>(
        threads, arguments, rows, typename Traits::KeyFragments{&head.key, block, tile.index},
        typename Traits::ValueFragments{&head.value, block, tile.index}, tile.first_position,
        tile.tokens, tile.sink, special, query, state);
  }
}

/// One warp's units of a segment, which lies in shared memory: registers are for sums.
template <class Traits, class Threads>
KVTILT_HD void attend_units(Threads& threads, const AttendArguments& arguments,
                            const Segment& segment, PageRing<Traits>& ring,
                            typename Traits::State& state) {
  const LayerStorage& layer = arguments.layer;
  const ItemRows& rows = segment.rows;
  const int warps = threads.thread_count() / warp_lanes;
  const int tiles = segment.counts.tiles();
  int unit = segment.first + threads.warp();

  typename PageRing<Traits>::Source source;
  source.layer = &layer;
  source.table = layer.table(segment.slot) + segment.sequence.first_page;
  source.head_offset = segment.head_offset;
  source.next = unit - tiles;
  if (source.next < 0) source.next += ceil_div(-source.next, warps) * warps;
  source.end = segment.last - tiles;
  source.stride = warps;
  source.load_slots(threads);
  KVTILT_DEVICE_LOOP
  for (int stage = 1; stage < ring.stages(); ++stage) ring.fetch(threads, source);

  QueryTile<Traits::key_dim> query;
  query.load(threads, arguments, rows);
  const PlainRange plain = rows.plain(arguments);

  KVTILT_DEVICE_LOOP
  for (; unit < segment.last && unit < tiles; unit += warps) {
    const HalfTile tile = half_tile(layer, segment.slot, segment.sequence, segment.counts, unit);
    // The layout of 16-bit blocks is known: [kv head][keys | values].
    constexpr std::uint32_t key_bytes = half_tile_bytes(Traits::key_dim);
    constexpr std::uint32_t value_bytes = half_tile_bytes(Traits::value_dim);
    const std::byte* keys =
        tile.block + static_cast<std::uint32_t>(rows.kv_head * tile.of) * (key_bytes + value_bytes);
    const std::byte* values = keys + tile.of * key_bytes;
    attend_tile<Traits::key_dim, Traits::value_dim>(
        threads, arguments, rows, HalfFragments{keys + tile.index * key_bytes},
        HalfFragments{values + tile.index * value_bytes}, tile.first_position, tile.tokens,
        tile.sink, plain.leaves(tile.first_position, tile.tokens, tile_extent), query, state);
  }
  KVTILT_DEVICE_LOOP
  for (; unit < segment.last; unit += warps) {
    ring.fetch(threads, source);
    PageSlot page;
    const std::byte* data = ring.take(threads, page);
    if constexpr (Traits::page_units == 1) {
      attend_page<Traits>(threads, arguments, rows, data, page,
                          plain.leaves(page.first_position, page.tokens, Traits::page_tokens),
                          query, state);
    } else {
      const int index = (unit - tiles) % Traits::page_units * tile_extent;
      const std::int64_t first = page.first_position + index;
      const int held = page.tokens - index;
      const int tokens = held < 0 ? 0 : held < tile_extent ? held : tile_extent;
      attend_tile<Traits::key_dim, Traits::value_dim>(
          threads, arguments, rows, HalfFragments{data}, HalfFragments{data + Traits::key_bytes},
          first, tokens, false, plain.leaves(first, tokens, tile_extent), query, state);
    }
    ring.release(threads);
  }
}

/// Sequences without a token have no unit: their outputs are written here.
template <class Traits, class Threads>
KVTILT_HD void write_empty_sequences(Threads& threads, const AttendArguments& arguments,
                                     const int* starts) {
  RowPart<Traits::value_dim> nothing;
  nothing.clear();
  nothing.maximum = no_maximum;
  nothing.total = 0.0f;
  KVTILT_DEVICE_LOOP
  for (int sequence = threads.block(); sequence < arguments.batch.count;
       sequence += threads.block_count()) {
    if (starts[sequence + 1] != starts[sequence]) continue;
    KVTILT_DEVICE_LOOP
    for (int item = 0; item < items_per_sequence(arguments); ++item)
      KVTILT_DEVICE_LOOP
      for (int row = threads.warp(); row < item_rows; row += threads.thread_count() / warp_lanes)
        write_item_row(threads, arguments, item_rows_of(arguments, sequence, item), row, nothing);
  }
}

/// The warps' states become the item's output, or the block's part of it.
template <class Traits, class Threads>
KVTILT_HD void finish_segment(Threads& threads, const AttendArguments& arguments,
                              const AttendShared& shared, const WorkLine& line,
                              const Segment& segment, typename Traits::State& state) {
  std::uint32_t* flag = reinterpret_cast<std::uint32_t*>(threads.shared() + shared.flag);
  const AttendWorkspace& workspace = arguments.workspace;
  const int warps = threads.thread_count() / warp_lanes;
  threads.sync();  // all rings are empty
  store_warp<Traits>(threads, shared, state);
  threads.sync();
  const ItemParts parts = ItemParts::of(line, segment.item_start, segment.counts.total());
  const bool whole = parts.first == parts.last;
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < segment.rows.rows; row += warps) {
    const RowPart<Traits::value_dim> part = merge_warps<Traits>(threads, shared, row);
    if (whole)
      write_item_row(threads, arguments, segment.rows, row, part);
    else
      store_part(threads, workspace, parts.slot(threads.block()) * item_rows + row, part);
  }
  if (whole || !last_to_arrive(threads, workspace.arrivals + segment.item, parts, flag)) return;
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < segment.rows.rows; row += warps)
    write_item_row(threads, arguments, segment.rows, row,
                   merge_blocks<Traits::value_dim>(threads, workspace, parts, item_rows, row));
}

template <class Traits, class Threads>
KVTILT_HD void attend_block(Threads& threads, const AttendArguments& arguments) {
  const int warps = threads.thread_count() / warp_lanes;
  const AttendShared shared =
      AttendShared::of<Traits>(warps, arguments.stages, arguments.batch.count);
  int* starts = reinterpret_cast<int*>(threads.shared() + shared.starts);
  Segment& segment = *reinterpret_cast<Segment*>(threads.shared() + shared.segment);
  [[maybe_unused]] PageRing<Traits> ring(threads, shared, Traits::generic ? 0 : arguments.stages);
  const AttendPlan plan = plan_units<Traits>(threads, arguments, starts);
  write_empty_sequences<Traits>(threads, arguments, starts);
  if (plan.total == 0) return;
  const WorkLine& line = plan.line;
  if (threads.block() >= line.blocks) return;

  const int end = line.start(threads.block() + 1);
  KVTILT_DEVICE_LOOP
  for (int unit = line.start(threads.block()); unit < end;) {
    if (threads.thread() == 0)
      segment = find_segment(arguments, starts, units_of_page<Traits>(arguments.layer), unit, end);
    threads.sync();
    unit = segment.item_end < end ? segment.item_end : end;
    if (segment.first >= segment.last) {  // padding alone
      threads.sync();
      continue;
    }
    typename Traits::State state;
    state.clear();
    if constexpr (Traits::generic)
      attend_generic_units<Traits>(threads, arguments, segment, state);
    else
      attend_units<Traits>(threads, arguments, segment, ring, state);
    finish_segment<Traits>(threads, arguments, shared, line, segment, state);
    threads.hand_over_shared();
    threads.sync();
  }
}

}  // namespace kvtilt::cuda
