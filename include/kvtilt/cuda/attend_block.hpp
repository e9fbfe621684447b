// SPDX-License-Identifier: MIT
/// The attention kernel: one launch over sinks, sealed pages and tail of a batch. Each block takes
/// its stretch of the line of units (attend_work.hpp), its warps take units in turn, and the last
/// block to finish an item merges what all of them left.
#pragma once

#include <kvtilt/cuda/attend_generic.hpp>
#include <kvtilt/cuda/attend_merge.hpp>

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

/// Units before each sequence of the batch, in shared memory; returns their total. All threads.
template <class Traits, class Threads>
KVTILT_HD int plan_units(Threads& threads, const AttendArguments& arguments, int* starts) {
  const int count = arguments.batch.count;
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < count; i += threads.thread_count())
    starts[i + 1] = count_units(arguments.layer, arguments.layer.states[arguments.batch.slots[i]],
                                units_of_page<Traits>(arguments.layer))
                        .total();
  threads.sync();
  if (threads.warp() == 0) {
    int before = 0;
    KVTILT_DEVICE_LOOP
    for (int first = 0; first < count; first += warp_lanes) {
      const int i = first + threads.lane();
      int sum = i < count ? starts[i + 1] : 0;
      KVTILT_DEVICE_LOOP
      for (int distance = 1; distance < warp_lanes; distance *= 2) {
        const int other = threads.shuffle(sum, threads.lane() - distance);
        if (threads.lane() >= distance) sum += other;
      }
      if (i < count) starts[i + 1] = before + sum;
      before += threads.shuffle(sum, warp_lanes - 1);
    }
    if (threads.lane() == 0) starts[0] = 0;
  }
  threads.sync();
  return starts[count];
}

/// A block's share of one item.
struct Segment {
  ItemRows rows;
  int item_start;  ///< on the line
  int item_units;
  int item;   ///< number over the batch
  int first;  ///< unit of the item
  int last;   ///< one past
  int slot;   ///< of the sequence
  SequenceState sequence;
  UnitCounts counts;
};

static_assert(sizeof(Segment) <= AttendShared::segment_bytes);

KVTILT_HD inline int row_tiles(const AttendArguments& arguments) {
  return ceil_div(arguments.rows(), item_rows);
}
/// Items of one sequence.
KVTILT_HD inline int items_per_sequence(const AttendArguments& arguments) {
  return arguments.layer.kv_heads * row_tiles(arguments);
}

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
  int sequence = 0;
  KVTILT_DEVICE_LOOP
  for (int beyond = arguments.batch.count; beyond - sequence > 1;) {
    const int middle = (sequence + beyond) / 2;
    (starts[middle] * items <= unit ? sequence : beyond) = middle;
  }
  Segment segment;
  segment.item_units = starts[sequence + 1] - starts[sequence];
  const int sequence_start = starts[sequence] * items;
  const int item = (unit - sequence_start) / segment.item_units;
  segment.item_start = sequence_start + item * segment.item_units;
  segment.item = sequence * items + item;
  segment.first = unit - segment.item_start;
  const int item_end = segment.item_start + segment.item_units;
  segment.last = segment.first + (item_end < end ? item_end : end) - unit;
  segment.rows = item_rows_of(arguments, sequence, item);
  segment.slot = arguments.batch.slots[sequence];
  segment.sequence = arguments.layer.states[segment.slot];
  segment.rows.length = segment.sequence.length;
  segment.counts = count_units(arguments.layer, segment.sequence, page_units);
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
  const PlainRange plain = PlainRange::of(arguments, rows.length);
  const bool shaped = arguments.rules.soft_cap > 0.0f || arguments.rules.alibi_slopes != nullptr;
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
    const bool special = shaped || tile.tokens < tile_extent ||
                         tile.first_position < plain.begin ||
                         tile.first_position + tile_extent > plain.end;
    attend_tile<Traits::key_dim, Traits::value_dim>(
        threads, arguments, rows,
        typename Traits::KeyFragments{&head.key, block, tile.index},
        typename Traits::ValueFragments{&head.value, block, tile.index},
        tile.first_position, tile.tokens, tile.sink, special, query, state);
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
  source.head_offset = layer.head(PageKind::Sealed, rows.kv_head).offset;
  source.next = unit - tiles;
  if (source.next < 0) source.next += ceil_div(-source.next, warps) * warps;
  source.end = segment.last - tiles;
  source.stride = warps;
  source.look_ahead();
  KVTILT_DEVICE_LOOP
  for (int stage = 1; stage < ring.stages(); ++stage) ring.fetch(threads, source);

  QueryTile<Traits::key_dim> query;
  query.load(threads, arguments, rows);
  const PlainRange plain = PlainRange::of(arguments, rows.length);
  const bool shaped = arguments.rules.soft_cap > 0.0f || arguments.rules.alibi_slopes != nullptr;
  const auto is_special = [&](std::int64_t first, int tokens, int slots) {
    return shaped || tokens < slots || first < plain.begin || first + slots > plain.end;
  };

  KVTILT_DEVICE_LOOP
  for (; unit < segment.last && unit < tiles; unit += warps) {
    const HalfTile tile = half_tile(layer, segment.slot, segment.sequence, segment.counts, unit);
    const HeadLayout& head = layer.head(tile.sink ? PageKind::Sinks : PageKind::Tail, rows.kv_head);
    const std::byte* block = tile.block + head.offset;
    attend_tile<Traits::key_dim, Traits::value_dim>(
        threads, arguments, rows,
        HalfFragments{block + head.key.codes + tile.index * half_tile_bytes(Traits::key_dim)},
        HalfFragments{block + head.value.codes + tile.index * half_tile_bytes(Traits::value_dim)},
        tile.first_position, tile.tokens, tile.sink,
        is_special(tile.first_position, tile.tokens, tile_extent), query, state);
  }
  KVTILT_DEVICE_LOOP
  for (; unit < segment.last; unit += warps) {
    ring.fetch(threads, source);
    PageSlot page;
    const std::byte* data = ring.take(threads, page);
    if constexpr (Traits::page_units == 1) {
      attend_page<Traits>(threads, arguments, rows, data, page,
                          is_special(page.first_position, page.tokens, Traits::page_tokens), query,
                          state);
    } else {
      const int index = (unit - tiles) % Traits::page_units * tile_extent;
      const std::int64_t first = page.first_position + index;
      const int held = page.tokens - index;
      const int tokens = held < 0 ? 0 : held < tile_extent ? held : tile_extent;
      attend_tile<Traits::key_dim, Traits::value_dim>(
          threads, arguments, rows, HalfFragments{data}, HalfFragments{data + Traits::key_bytes},
          first, tokens, false, is_special(first, tokens, tile_extent), query, state);
    }
    ring.release(threads);
  }
}

/// Sequences without a token have no unit: their outputs are written here.
template <class Traits, class Threads>
KVTILT_HD void write_empty_sequences(Threads& threads, const AttendArguments& arguments,
                                     const AttendShared& shared, const int* starts) {
  const BlockPart part{reinterpret_cast<float*>(threads.shared() + shared.outputs),
                       reinterpret_cast<float*>(threads.shared() + shared.states),
                       Traits::value_dim + AttendShared::output_padding};
  KVTILT_DEVICE_LOOP
  for (int sequence = threads.block(); sequence < arguments.batch.count;
       sequence += threads.block_count()) {
    if (starts[sequence + 1] != starts[sequence]) continue;
    KVTILT_DEVICE_LOOP
    for (int i = threads.thread(); i < item_rows * part.stride; i += threads.thread_count())
      part.outputs[i] = 0.0f;
    KVTILT_DEVICE_LOOP
    for (int i = threads.thread(); i < item_rows * 2; i += threads.thread_count())
      part.states[i] = i % 2 == 0 ? no_maximum : 0.0f;
    threads.sync();
    KVTILT_DEVICE_LOOP
    for (int item = 0; item < items_per_sequence(arguments); ++item)
      write_item<Traits>(threads, arguments, item_rows_of(arguments, sequence, item), part);
    threads.sync();
  }
}

template <class Traits, class Threads>
KVTILT_HD void attend_block(Threads& threads, const AttendArguments& arguments) {
  const int warps = threads.thread_count() / warp_lanes;
  const AttendShared shared =
      AttendShared::of<Traits>(warps, arguments.stages, arguments.batch.count);
  int* starts = reinterpret_cast<int*>(threads.shared() + shared.starts);
  std::uint32_t* flag = reinterpret_cast<std::uint32_t*>(threads.shared() + shared.flag);
  Segment& segment = *reinterpret_cast<Segment*>(threads.shared() + shared.segment);
  [[maybe_unused]] PageRing<Traits> ring(threads, shared, Traits::generic ? 0 : arguments.stages);
  const int total =
      plan_units<Traits>(threads, arguments, starts) * items_per_sequence(arguments);
  write_empty_sequences<Traits>(threads, arguments, shared, starts);
  if (total == 0) return;
  const WorkLine line = WorkLine::make(total, threads.block_count(), warps);
  if (threads.block() >= line.blocks) return;

  const int end = line.start(threads.block() + 1);
  KVTILT_DEVICE_LOOP
  for (int unit = line.start(threads.block()); unit < end;) {
    if (threads.thread() == 0)
      segment = find_segment(arguments, starts, units_of_page<Traits>(arguments.layer), unit, end);
    threads.sync();
    typename Traits::State state;
    state.clear();
    if constexpr (Traits::generic)
      attend_generic_units<Traits>(threads, arguments, segment, state);
    else
      attend_units<Traits>(threads, arguments, segment, ring, state);
    const BlockPart part = merge_warps<Traits>(threads, shared, state);

    const ItemParts parts = ItemParts::of(line, segment.item_start, segment.item_units);
    bool complete = parts.first == parts.last;
    if (!complete) {
      store_part<Traits>(threads, arguments.workspace, parts.slot(threads.block()), part);
      threads.fence();
      threads.sync();
      if (threads.thread() == 0)
        *flag = threads.atomic_add(arguments.workspace.arrivals + segment.item, 1);
      threads.sync();
      complete = *flag == static_cast<std::uint32_t>(parts.last - parts.first);
      if (complete) {
        threads.fence();
        if (threads.thread() == 0) arguments.workspace.arrivals[segment.item] = 0;
        merge_blocks<Traits>(threads, arguments.workspace, parts,
                             reinterpret_cast<float*>(threads.shared() + shared.factors), part);
      }
    }
    if (complete) write_item<Traits>(threads, arguments, segment.rows, part);
    unit += segment.last - segment.first;
    threads.sync();
  }
}

}  // namespace kvtilt::cuda
