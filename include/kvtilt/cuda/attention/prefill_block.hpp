// SPDX-License-Identifier: MIT
/// The prefill kernel. The warps of a block stage a unit (four tiles of 16 tokens: prefill_work.hpp)
/// together, then attend to it: a warp decodes one tile into shared memory, for all query rows of the
/// block. Blocks that copy pages meanwhile copy the next sealed page there, as it is stored.
///
/// For 128 channels, 128 query rows and 64 tokens a block takes 1024 mma, which keep the tensor
/// cores of an H200 busy for about 1550 cycles (0.66 a cycle: bench/results/h200-probes.json).
/// Shared memory is busy for longer, 1790 cycles: 32 KB are written, and each warp reads 48 KB, a
/// third of them queries. With the logits of four tiles at a time, queries would be read half as
/// often, but those logits do not fit the registers. tests/compile/kernels counts the other
/// instructions.
#pragma once

#include <kvtilt/cuda/attention/prefill_rows.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda {

/// Offsets of the parts of a block's shared memory.
struct PrefillShared {
  std::uint32_t stages;   ///< [2][keys, values] of a unit, behind the warps' queries; in the end
                          ///< the outputs of all rows take the place of both
  std::uint32_t page;     ///< copied page of the unit that is staged next, as it is stored
  std::uint32_t tiles;    ///< [2][unit_tiles] StagedTile
  std::uint32_t special;  ///< [2][unit_tiles] bytes: whether the tile needs transform_and_mask()
  std::uint32_t barrier;  ///< of the page
  std::uint32_t ahead;    ///< [unit_tiles] pages of the unit that is staged next
  std::uint32_t rows;     ///< [row] QueryRow
  std::uint32_t states;   ///< [row][maximum, sum], behind the outputs
  std::uint32_t segment;
  std::uint32_t plan;  ///< here to save registers
  std::uint32_t flag;
  std::uint32_t unit_starts;
  std::uint32_t tile_starts;
  std::uint32_t bytes;

  /// Four warps, 128 channels and 256 sequences fit the 99 KiB of small devices, without a page.
  ///
  /// copied_pages  whether blocks copy sealed pages: PrefillArguments
  template <class Traits>
  KVTILT_HD static PrefillShared of(int warps, int sequences, bool copied_pages) {
    const std::uint32_t rows = static_cast<std::uint32_t>(warps * Traits::warp_rows);
    PrefillShared shared{};
    shared.stages = rows * Traits::key_dim * 2;
    shared.page = shared.stages + 2 * Traits::stage_bytes;
    shared.states = rows * PrefillState<Traits>::row_stride * 4;
    if (shared.page < shared.states + rows * 8) shared.page = shared.states + rows * 8;
    shared.tiles = shared.page;
    if (copied_pages) shared.tiles += copied_page_bytes<typename Traits::pages>();
    shared.special = shared.tiles + 2 * unit_tiles * sizeof(StagedTile);
    shared.barrier = shared.special + 2 * unit_tiles;
    shared.ahead = shared.barrier + 8;
    shared.rows = shared.ahead + unit_tiles * sizeof(PageSlot);
    shared.segment = shared.rows + rows * static_cast<std::uint32_t>(sizeof(QueryRow));
    shared.plan = shared.segment + (sizeof(PrefillSegment) + 15) / 16 * 16;
    shared.flag = shared.plan + (sizeof(PrefillPlan) + 15) / 16 * 16;
    shared.unit_starts = shared.flag + 16;
    shared.tile_starts = shared.unit_starts + (most_tile_groups + 1) * 4;
    shared.bytes = shared.tile_starts + static_cast<std::uint32_t>(sequences + 1) * 4;
    return shared;
  }
};

/// Prefetches into L2 a tile's part of its sealed page, if it is of one: an equal part for each tile.
template <class Pages, class Threads>
KVTILT_HD void prefetch_tile(Threads& threads, const LayerView& layer,
                             const PrefillSegment& segment, int tile, const PageSlot& page) {
  const int parts = page_tiles<Pages>(layer);
  if (tile < segment.list.past.page_units)
    prefetch_part(threads, layer.block(PageKind::Sealed, page.page) + segment.head_offset,
                  segment.head_bytes, tile % parts, parts);
}

/// Whether blocks copy sealed pages to shared memory while they compute.
template <class Pages>
KVTILT_HD bool copies_pages(const PrefillArguments& arguments) {
  constexpr bool possible = compiled_machine.prefill_copies && copied_page_bytes<Pages>() > 0;
  return possible && arguments.copied_pages != 0;
}

/// Starts to copy the page of a unit, if it is one; its slot was stored in `ahead`. All warps must have
/// decoded the page that was copied before.
template <class Threads>
KVTILT_HD void copy_page(Threads& threads, const LayerView& layer, const PrefillShared& shared,
                         const PrefillSegment& segment, int unit) {
  if (threads.warp() != 0 || unit >= segment.page_end) return;
  const PageSlot& page = *reinterpret_cast<const PageSlot*>(threads.shared() + shared.ahead);
  std::uint64_t* barrier = reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barrier);
  const std::uint32_t bytes = static_cast<std::uint32_t>(segment.head_bytes);
  threads.begin_stage(barrier, bytes);
  // L2 keeps it: blocks with other rows of the sequence read it, too.
  threads.template copy_to_stage<false>(
      threads.shared() + shared.page,
      layer.block(PageKind::Sealed, page.page) + segment.head_offset, bytes, barrier);
}

/// Finds the pages of a segment's first unit, and starts to prefetch or copy them.
template <class Pages, class Threads>
KVTILT_HD void find_first_pages(Threads& threads, const PrefillArguments& arguments,
                                const PrefillShared& shared, const PrefillSegment& segment) {
  const LayerView& layer = arguments.attend.layer;
  PageSlot* ahead = reinterpret_cast<PageSlot*>(threads.shared() + shared.ahead);
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < unit_tiles; i += threads.thread_count() / warp_lanes) {
    const int tile = segment.first * unit_tiles + i;
    const PageSlot page =
        page_of_tile(layer, segment.first_slot, segment.list, tile, page_tiles<Pages>(layer));
    if (!copies_pages<Pages>(arguments)) prefetch_tile<Pages>(threads, layer, segment, tile, page);
    if (threads.lane() == 0) ahead[i] = page;
  }
  threads.sync_warp();
  if (copies_pages<Pages>(arguments)) copy_page(threads, layer, shared, segment, segment.first);
}

/// Decodes the tiles of one unit into a stage, and finds the pages of the next one. Pages that are not
/// copied are prefetched into L2, from which they are decoded a unit later.
template <class Traits, class Threads>
KVTILT_HD void stage_unit(Threads& threads, const PrefillArguments& arguments,
                          const PrefillShared& shared, const PrefillSegment& segment, int unit,
                          int stage) {
  using Pages = typename Traits::pages;
  const LayerView& layer = arguments.attend.layer;
  std::byte* keys =
      threads.shared() + shared.stages + static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
  std::byte* values = keys + unit_tiles * Traits::key_bytes;
  StagedTile* staged = reinterpret_cast<StagedTile*>(threads.shared() + shared.tiles);
  std::uint8_t* special = reinterpret_cast<std::uint8_t*>(threads.shared() + shared.special);
  PageSlot* ahead = reinterpret_cast<PageSlot*>(threads.shared() + shared.ahead);
  const bool copied = copies_pages<Pages>(arguments);
  KVTILT_DEVICE_LOOP
  for (int i = threads.warp(); i < unit_tiles; i += threads.thread_count() / warp_lanes) {
    const int number = unit * unit_tiles + i;
    std::byte* tile_keys = keys + static_cast<std::uint32_t>(i) * Traits::key_bytes;
    std::byte* tile_values = values + static_cast<std::uint32_t>(i) * Traits::value_bytes;
    const auto note = [&](const TokenTile& tile) {
      const PlainRange plain = segment.plain;
      if (threads.lane() != 0) return;
      staged[stage * unit_tiles + i] = {tile.first_position, tile.tokens, tile.sink};
      special[stage * unit_tiles + i] =
          plain.excludes(tile.first_position, tile.tokens, tile_extent);
    };
    // Arrives while the tile is staged.
    const PageSlot next = page_of_tile(layer, segment.first_slot, segment.list, number + unit_tiles,
                                       page_tiles<Pages>(layer));
    if (number < segment.list.past.page_units) {
      TokenTile tile = sealed_tile(layer, ahead[i], number % page_tiles<Pages>(layer));
      note(tile);
      // Two calls, for the compiler to know whether the pointer is to shared or to global memory.
      if (copied) {
        threads.template wait_stage<1>(
            reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barrier),
            static_cast<std::uint32_t>(segment.copied + unit - segment.first) & 1);
        tile.block = threads.shared() + shared.page;
        stage_sealed_tile<Traits>(threads, layer, segment.rows.kv_head, tile, tile_keys,
                                  tile_values);
      } else {
        tile.block += segment.head_offset;
        stage_sealed_tile<Traits>(threads, layer, segment.rows.kv_head, tile, tile_keys,
                                  tile_values);
      }
    } else {
      const SourceTile tile = find_unsealed_tile(layer, segment.slot, segment.state, segment.rows,
                                                 segment.list, number);
      note(tile.at);
      stage_unsealed_tile<Traits>(threads, arguments, segment.rows, tile, tile_keys, tile_values);
    }
    if (!copied) prefetch_tile<Pages>(threads, layer, segment, number + unit_tiles, next);
    threads.sync_warp();  // all lanes have read ahead[i]
    if (threads.lane() == 0) ahead[i] = next;
  }
  threads.sync_warp();  // lanes diverge above, and mma needs them converged
}

/// Writes the warps' rows to the item's output, or stores them as the block's part of it; the last
/// block to finish the item merges the parts.
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
  const int present = segment.rows.rows(attend.gqa_ratio);
  const ItemParts parts = ItemParts::of(line, segment.item_start, segment.item_units);
  const bool whole = parts.first == parts.last;
  const auto place = [&](int row) {
    return RowOfTile::of(segment.rows, attend.gqa_ratio, row).place;
  };
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
  const PrefillShared shared =
      PrefillShared::of<Traits>(warps, arguments.attend.batch.count, arguments.copied_pages != 0);
  // The `special` bytes of score_tiles tiles, read together.
  using SpecialTiles = std::conditional_t<Traits::score_tiles == 2, std::uint16_t, std::uint32_t>;
  static_assert(sizeof(SpecialTiles) == Traits::score_tiles);
  int* tile_starts = reinterpret_cast<int*>(threads.shared() + shared.tile_starts);
  int* unit_starts = reinterpret_cast<int*>(threads.shared() + shared.unit_starts);
  PrefillSegment& segment = *reinterpret_cast<PrefillSegment*>(threads.shared() + shared.segment);
  const StagedTile* staged = reinterpret_cast<const StagedTile*>(threads.shared() + shared.tiles);
  PrefillPlan& plan = *reinterpret_cast<PrefillPlan*>(threads.shared() + shared.plan);
  const PrefillPlan own = plan_prefill(threads, arguments, block_rows, tile_starts, unit_starts);
  if (own.total == 0 || threads.block() >= own.line.blocks) return;
  if (threads.thread() == 0) {
    plan = own;
    segment = {};
    threads.prepare_stage(reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barrier));
  }
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
    if (threads.thread() == 0) {
      const int copied = segment.copied + segment.pages();
      segment = find_segment(arguments, tile_starts, unit_starts, plan, block_rows, next, end);
      segment.copied = copied;
    }
    threads.sync();
    PrefillState<Traits> state;
    state.clear();
    find_first_pages<typename Traits::pages>(threads, arguments, shared, segment);
    state.load_queries(threads, arguments.attend, segment.rows, first_row, queries, rows);
    // A warp without rows only stages.
    const int last = first_row < segment.rows.rows(arguments.attend.gqa_ratio) ? unit_tiles : 0;
    KVTILT_DEVICE_LOOP
    for (int unit = segment.first, stage = 0; unit < segment.last; ++unit, stage ^= 1) {
      stage_unit<Traits>(threads, arguments, shared, segment, unit, stage);
      threads.sync();  // no warp still reads the unit before: its stage is next
      if (copies_pages<typename Traits::pages>(arguments))
        copy_page(threads, arguments.attend.layer, shared, segment, unit + 1);
      const std::byte* keys = threads.shared() + shared.stages +
                              static_cast<std::uint32_t>(stage) * Traits::stage_bytes;
      const std::byte* values = keys + unit_tiles * Traits::key_bytes;
      const SpecialTiles* special =
          reinterpret_cast<const SpecialTiles*>(threads.shared() + shared.special) +
          stage * (unit_tiles / Traits::score_tiles);
      KVTILT_DEVICE_LOOP
      for (int first = 0; first < last; first += Traits::score_tiles) {
        const StagedTile* tiles = staged + stage * unit_tiles + first;
        TileLogits<Traits> logits;
        state.score(threads, queries, keys + static_cast<std::uint32_t>(first) * Traits::key_bytes,
                    logits);
        typename PrefillState<Traits>::Factors factors(rows, threads.lane());
        if (special[first / Traits::score_tiles] != 0)
          state.transform_and_mask(threads, arguments.attend.rules, segment.rows, rows, tiles,
                                   logits, factors);
        state.raise(threads, logits, factors);
        state.mix(threads, values + static_cast<std::uint32_t>(first) * Traits::value_bytes, logits,
                  factors);
      }
    }
    threads.sync();
    finish_rows<Traits>(threads, arguments, shared, plan.line, segment, state);
    next = segment.item_start + segment.last;
    threads.sync();
  }
}

}  // namespace kvtilt::cuda
