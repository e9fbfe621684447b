// SPDX-License-Identifier: MIT
/// The kernel of a chunk's attention. While a block attends to a unit, its warps stage the next one:
/// a warp decodes one tile of 16 tokens into shared memory, for all query rows of the block.
///
/// For 128 channels, 128 query rows and 64 tokens a block takes 1024 mma, which keep the tensor
/// cores of an H200 busy for about 1550 cycles (0.66 a cycle: bench/results/h200-probes.json).
/// Shared memory is busy for longer, 1790 cycles: 32 KB are written, and each warp reads 48 KB, a
/// third of them queries. Logits of four tiles at a time would read those half as often, but do not
/// fit the registers. tests/compile/kernels counts the other instructions.
#pragma once

#include <kvtilt/cuda/attention/prefill_rows.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// A tile that is staged next, in shared memory. Of a pointer from there the compiler would not
/// know that it is one to global memory.
struct FoundTile {
  std::int64_t first_position;
  std::int64_t offset;  ///< of the block in its pool
  std::int32_t index;
  std::uint8_t tokens;
  bool sink;
  TileSource source;

  KVTILT_HD static FoundTile of(const LayerStorage& layer, const SourceTile& tile) {
    FoundTile found{tile.at.first_position, 0,
                    tile.at.index,          static_cast<std::uint8_t>(tile.at.tokens),
                    tile.at.sink,           tile.source};
    if (tile.at.block != nullptr) found.offset = tile.at.block - found.pool(layer);
    return found;
  }
  [[nodiscard]] KVTILT_HD SourceTile tile(const LayerStorage& layer) const {
    return {source, {pool(layer) + offset, first_position, index, 0, tokens, sink}};
  }

 private:
  [[nodiscard]] KVTILT_HD const std::byte* pool(const LayerStorage& layer) const {
    return layer.pool[static_cast<int>(source == TileSource::Sealed ? PageKind::Sealed
                                       : sink                       ? PageKind::Sinks
                                                                    : PageKind::Tail)];
  }
};

/// Where the parts of a block's shared memory begin.
struct PrefillShared {
  std::uint32_t stages;  ///< [2][keys, values] of a unit; the warps' queries lie before it, and in
                         ///< the end the outputs of all rows instead of both
  std::uint32_t tiles;   ///< [2][unit_tiles]
  std::uint32_t ahead;   ///< [unit_tiles] of the unit that is staged next
  std::uint32_t rows;    ///< [row]
  std::uint32_t states;  ///< [row][2], behind the outputs
  std::uint32_t segment;
  std::uint32_t plan;  ///< registers are for sums
  std::uint32_t flag;
  std::uint32_t unit_starts;
  std::uint32_t tile_starts;
  std::uint32_t bytes;

  /// Four warps, 128 channels and 256 sequences fit the 99 KiB of small devices.
  template <class Traits>
  KVTILT_HD static PrefillShared of(int warps, int sequences) {
    const std::uint32_t rows = static_cast<std::uint32_t>(warps * Traits::warp_rows);
    PrefillShared shared{};
    shared.stages = rows * Traits::key_dim * 2;
    shared.tiles = shared.stages + 2 * Traits::stage_bytes;
    shared.states = rows * PrefillState<Traits>::row_stride * 4;
    if (shared.tiles < shared.states + rows * 8) shared.tiles = shared.states + rows * 8;
    shared.ahead = shared.tiles + 2 * unit_tiles * sizeof(StagedTile);
    shared.rows = shared.ahead + unit_tiles * sizeof(FoundTile);
    shared.segment = shared.rows + rows * static_cast<std::uint32_t>(sizeof(QueryRow));
    shared.plan = shared.segment + (sizeof(PrefillSegment) + 15) / 16 * 16;
    shared.flag = shared.plan + (sizeof(PrefillPlan) + 15) / 16 * 16;
    shared.unit_starts = shared.flag + 16;
    shared.tile_starts = shared.unit_starts + (most_tile_groups + 1) * 4;
    shared.bytes = shared.tile_starts + static_cast<std::uint32_t>(sequences + 1) * 4;
    return shared;
  }
};

/// Tile `tile` of a segment's item, to be staged.
KVTILT_HD inline SourceTile find_tile(const PrefillArguments& arguments,
                                      const PrefillSegment& segment, int tile) {
  SourceTile found = find_tile(arguments.attend.layer, segment.slot, segment.state, segment.rows,
                               segment.list, tile);
  if (found.source == TileSource::Sealed) found.at.block += segment.head_offset;
  return found;
}

/// Finds the warps' tiles of the first unit of a segment, and asks for them.
template <class Threads>
KVTILT_HD void find_first_tiles(Threads& threads, const PrefillArguments& arguments,
                                const PrefillShared& shared, const PrefillSegment& segment) {
  FoundTile* ahead = reinterpret_cast<FoundTile*>(threads.shared() + shared.ahead);
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < unit_tiles; i += threads.thread_count() / warp_lanes) {
    const SourceTile first = find_tile(arguments, segment, segment.first * unit_tiles + i);
    prefetch_tile(threads, first, arguments.attend.layer.page_tokens / tile_extent,
                  segment.head_bytes);
    if (threads.lane() == 0) ahead[i] = FoundTile::of(arguments.attend.layer, first);
  }
  threads.sync_warp();
}

/// The warps' tiles of one unit, decoded. Those of the next one are found meanwhile, and asked for:
/// they come from L2 when they are decoded, a unit later.
template <class Traits, class Threads>
KVTILT_HD void stage_unit(Threads& threads, const PrefillArguments& arguments,
                          const PrefillShared& shared, const PrefillSegment& segment, int unit,
                          int stage) {
  std::byte* keys =
      threads.shared() + shared.stages + static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
  std::byte* values = keys + unit_tiles * Traits::key_bytes;
  StagedTile* staged = reinterpret_cast<StagedTile*>(threads.shared() + shared.tiles);
  FoundTile* ahead = reinterpret_cast<FoundTile*>(threads.shared() + shared.ahead);
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < unit_tiles; i += threads.thread_count() / warp_lanes) {
    const SourceTile tile = ahead[i].tile(arguments.attend.layer);
    const SourceTile next = find_tile(arguments, segment, (unit + 1) * unit_tiles + i);
    if (threads.lane() == 0)
      staged[stage * unit_tiles + i] = {tile.at.first_position, tile.at.tokens, tile.at.sink};
    stage_tile<Traits>(threads, arguments, segment.rows, tile,
                       keys + static_cast<std::uint32_t>(i) * Traits::key_bytes,
                       values + static_cast<std::uint32_t>(i) * Traits::value_bytes);
    prefetch_tile(threads, next, arguments.attend.layer.page_tokens / tile_extent,
                  segment.head_bytes);
    threads.sync_warp();  // all lanes have read where the tile lies
    if (threads.lane() == 0) ahead[i] = FoundTile::of(arguments.attend.layer, next);
  }
  threads.sync_warp();  // lanes part ways above, and mma wants them together
}

/// The warps' rows become the item's output, or the block's part of it.
template <class Traits, class Threads>
KVTILT_HD void finish_rows(Threads& threads, const PrefillArguments& arguments,
                           const PrefillShared& shared, const WorkLine& line,
                           const PrefillSegment& segment, PrefillState<Traits>& state) {
  using Part = RowPart<Traits::value_dim>;
  constexpr int stride = PrefillState<Traits>::row_stride;
  const AttendArguments& attend = arguments.attend;
  const AttendWorkspace& workspace = attend.workspace;
  const int warps = threads.thread_count() / warp_lanes;
  const int block_rows = warps * Traits::warp_rows;
  const int first = threads.warp() * Traits::warp_rows;
  const int present = segment.rows.rows(attend.ratio);
  const ItemParts parts = ItemParts::of(line, segment.item_start, segment.item_units);
  const bool whole = parts.first == parts.last;
  const auto place = [&](int row) { return RowOfTile::of(segment.rows, attend.ratio, row).place; };
  const float* outputs = reinterpret_cast<const float*>(threads.shared());
  const float* states = reinterpret_cast<const float*>(threads.shared() + shared.states);
  state.store(threads, reinterpret_cast<float*>(threads.shared()) + first * stride,
              reinterpret_cast<float*>(threads.shared() + shared.states) + first * 2);
  threads.sync_warp();
  KVTILT_DEVICE_LOOP
  for (int row = first; row < first + Traits::warp_rows && row < present; ++row) {
    Part part;
    part.maximum = states[row * 2];
    part.total = states[row * 2 + 1];
    KVTILT_DEVICE_UNROLL
    for (int quad = 0; quad < Part::quads; ++quad)
      if (Part::holds(threads.lane(), quad))
        part.sum[quad] = *reinterpret_cast<const Quad*>(outputs + row * stride +
                                                        Part::channel(threads.lane(), quad));
    if (whole)
      write_row(threads, attend, place(row), part);
    else
      store_part(threads, workspace,
                 static_cast<std::int64_t>(parts.slot(threads.block())) * block_rows + row, part);
  }
  std::uint32_t* flag = reinterpret_cast<std::uint32_t*>(threads.shared() + shared.flag);
  if (whole || !last_to_arrive(threads, workspace, parts, flag)) return;
  KVTILT_DEVICE_LOOP
  for (int row = threads.warp(); row < present; row += warps)
    write_row(threads, attend, place(row),
              merge_blocks<Traits::value_dim>(threads, workspace, parts, block_rows, row));
}

template <class Traits, class Threads>
KVTILT_HD void attend_prefill_block(Threads& threads, const PrefillArguments& arguments) {
  const int warps = threads.thread_count() / warp_lanes;
  const int block_rows = warps * Traits::warp_rows;
  const PrefillShared shared = PrefillShared::of<Traits>(warps, arguments.attend.batch.count);
  int* tile_starts = reinterpret_cast<int*>(threads.shared() + shared.tile_starts);
  int* unit_starts = reinterpret_cast<int*>(threads.shared() + shared.unit_starts);
  PrefillSegment& segment = *reinterpret_cast<PrefillSegment*>(threads.shared() + shared.segment);
  const StagedTile* staged = reinterpret_cast<const StagedTile*>(threads.shared() + shared.tiles);
  PrefillPlan& plan = *reinterpret_cast<PrefillPlan*>(threads.shared() + shared.plan);
  const PrefillPlan own = plan_prefill(threads, arguments, block_rows, tile_starts, unit_starts);
  if (own.total == 0 || threads.block() >= own.line.blocks) return;
  if (threads.thread() == 0) plan = own;
  threads.sync();

  const int first_row = threads.warp() * Traits::warp_rows;
  QueryRow* rows = reinterpret_cast<QueryRow*>(threads.shared() + shared.rows) + first_row;
  std::byte* queries =
      threads.shared() +
      static_cast<std::uint32_t>(threads.warp() * Traits::row_tiles) * Traits::key_bytes;
  KVTILT_DEVICE_LOOP
  for (int next = plan.line.start(threads.block());;) {
    const int end = plan.line.start(threads.block() + 1);
    if (next >= end) return;
    if (threads.thread() == 0)
      segment = find_segment(arguments, tile_starts, unit_starts, plan, block_rows, next, end);
    threads.sync();
    PrefillState<Traits> state;
    state.clear();
    find_first_tiles(threads, arguments, shared, segment);
    state.load_queries(threads, arguments.attend, segment.rows, first_row, queries, rows);
    stage_unit<Traits>(threads, arguments, shared, segment, segment.first, 0);
    threads.sync();
    KVTILT_DEVICE_LOOP
    for (int unit = segment.first, stage = 0; unit < segment.last; ++unit, stage ^= 1) {
      if (unit + 1 < segment.last)
        stage_unit<Traits>(threads, arguments, shared, segment, unit + 1, stage ^ 1);
      const std::byte* keys = threads.shared() + shared.stages +
                              static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
      const std::byte* values = keys + unit_tiles * Traits::key_bytes;
      // A warp without rows has nothing to do but to stage.
      const int last = first_row < segment.rows.rows(arguments.attend.ratio) ? unit_tiles : 0;
      KVTILT_DEVICE_LOOP
      for (int first = 0; first < last; first += Traits::score_tiles) {
        const StagedTile* tiles = staged + stage * unit_tiles + first;
        bool special = false;
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < Traits::score_tiles; ++i)
          special = special ||
                    segment.plain.leaves(tiles[i].first_position, tiles[i].tokens, tile_extent);
        TileLogits<Traits> logits;
        state.score(threads, queries, keys + static_cast<std::uint32_t>(first) * Traits::key_bytes,
                    logits);
        typename PrefillState<Traits>::Factors factors(rows, threads.lane());
        if (special)
          state.shape(threads, arguments.attend.rules, segment.rows, rows, tiles, logits, factors);
        state.raise(threads, logits, factors);
        state.mix(threads, values + static_cast<std::uint32_t>(first) * Traits::value_bytes, logits,
                  factors);
      }
      threads.sync();
    }
    finish_rows<Traits>(threads, arguments, shared, plan.line, segment, state);
    next = segment.item_start + segment.last;
    threads.sync();
  }
}

}  // namespace kvtilt::cuda
