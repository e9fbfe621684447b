// SPDX-License-Identifier: MIT
/// Who attends to what in a launch over chunks of prompts. An item is a row tile: the query rows that
/// a block holds in its registers, some tokens of a chunk with all query heads of one kv head. It is
/// a list of tiles of 16 tokens, which a block takes four at a time, a unit: the sealed pages, sinks
/// and tail of the past, then the chunk itself up to the row tile's newest token. All units of all
/// items lie on one line, cut for the blocks as in work.hpp.
#pragma once

#include <kvtilt/cuda/attention/work.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_storage.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

struct PrefillArguments {
  AttendArguments attend;  ///< `queries` is not read: chunks may differ in length
  TensorView keys;         ///< device, [rows, kv_heads, key_dim]
  TensorView values;
  BatchRows rows;
  int most_tiles;  ///< row tiles that shared memory has room for
};

/// Tiles of 16 tokens in a unit.
inline constexpr int unit_tiles = 4;

/// Query rows of an item: row = token * ratio + query head of the group.
struct RowTile {
  int sequence;  ///< of the batch
  int kv_head;
  int token;   ///< of the chunk: the tile's first
  int tokens;  ///< of the tile
  int chunk_tokens;
  std::int64_t first_row;  ///< of the tensors, for the chunk's first token
  std::int64_t past;       ///< position of the chunk's first token

  [[nodiscard]] KVTILT_HD int rows(int ratio) const { return tokens * ratio; }
  [[nodiscard]] KVTILT_HD std::int64_t oldest() const { return past + token; }
  [[nodiscard]] KVTILT_HD std::int64_t newest() const { return past + token + tokens - 1; }
};

/// Tokens in a row tile of `block_rows` rows.
KVTILT_HD constexpr int tile_tokens(int block_rows, int ratio) { return block_rows / ratio; }

/// The tiles of 16 tokens that a row tile attends to, in this order.
struct TileList {
  UnitCounts past;  ///< in tiles
  int chunk_first;  ///< tile of the chunk: the window hides those before it
  int chunk_end;

  [[nodiscard]] KVTILT_HD int total() const { return past.total() + chunk_end - chunk_first; }
  [[nodiscard]] KVTILT_HD int units() const { return ceil_div(total(), unit_tiles); }

  [[nodiscard]] KVTILT_HD static TileList of(const AttendArguments& arguments,
                                             const SequenceState& state, const RowTile& rows) {
    const AttendRules& rules = arguments.rules;
    TileList list;
    list.past = count_units(arguments.layer, state, arguments.layer.page_tokens / tile_extent);
    const int hidden = rules.window > 0 ? rows.token - rules.window + 1 : 0;
    list.chunk_first = hidden > 0 ? hidden / tile_extent : 0;
    if (hidden > 0) {  // and so is all of the past, but for sinks that are kept
      list.past.page_units = list.past.tail_tiles = 0;
      if (rules.keep_sinks == 0) list.past.sink_tiles = 0;
    }
    list.chunk_end = ceil_div(
        rules.tree_mask != nullptr ? rows.chunk_tokens : rows.token + rows.tokens, tile_extent);
    return list;
  }
};

enum class TileSource : std::uint8_t { Nothing, Sealed, Half, Chunk };

/// A tile of 16 tokens, wherever it is. Chunk: `index` counts tiles of the chunk, block is null.
struct SourceTile {
  TileSource source;
  HalfTile at;
};

KVTILT_HD inline SourceTile find_tile(const LayerStorage& layer, int slot,
                                      const SequenceState& state, const RowTile& rows,
                                      const TileList& list, int tile) {
  SourceTile found{};
  if (tile < list.past.page_units) {
    found.source = TileSource::Sealed;
    found.at = sealed_tile(layer, layer.table(slot) + state.first_page, tile,
                           layer.page_tokens / tile_extent);
  } else if (tile < list.past.total()) {
    found.source = TileSource::Half;
    found.at = half_tile(layer, layer.page_tokens, slot, state, list.past,
                         tile - list.past.page_units);
  } else if (tile < list.total()) {
    found.source = TileSource::Chunk;
    found.at.index = list.chunk_first + tile - list.past.total();
    const int first = found.at.index * tile_extent;
    const int left = rows.chunk_tokens - first;
    found.at.first_position = rows.past + first;
    found.at.tokens = left < tile_extent ? left : tile_extent;
  }
  return found;
}

/// The line of a launch, planned anew by each block.
struct PrefillPlan {
  WorkLine line;
  int tiles;  ///< row tiles of one kv head, over the batch
  int total;  ///< units
};

/// Row tile `tile` of the batch; its kv head is for the caller to fill in.
KVTILT_HD inline RowTile row_tile(const PrefillArguments& arguments, const int* tile_starts,
                                  int block_rows, int tile) {
  const int sequence = last_not_above(tile_starts, arguments.attend.batch.count, 1, tile);
  RowTile rows{};
  rows.sequence = sequence;
  rows.chunk_tokens = static_cast<int>(arguments.rows.count(sequence));
  rows.first_row = arguments.rows.first(sequence);
  const int each = tile_tokens(block_rows, arguments.attend.ratio);
  rows.token = (tile - tile_starts[sequence]) * each;
  const int left = rows.chunk_tokens - rows.token;
  rows.tokens = left < each ? left : each;
  rows.past = arguments.attend.layer.states[arguments.attend.batch.slots[sequence]].length;
  return rows;
}

/// Nothing, and an error in the record, if there are said to be more rows than the tensors have.
///
/// tile_starts  [sequences + 1]: row tiles before each
/// unit_starts  [row tiles + 1]: units before each, of one kv head
template <class Threads>
KVTILT_HD PrefillPlan plan_prefill(Threads& threads, const PrefillArguments& arguments,
                                   int block_rows, int* tile_starts, int* unit_starts) {
  const AttendArguments& attend = arguments.attend;
  const int each = tile_tokens(block_rows, attend.ratio);
  if (arguments.rows.first(attend.batch.count) > arguments.keys.tokens) {
    if (threads.block() == 0 && threads.thread() == 0)
      record_error(threads, attend.layer.record,
                   sequence_error(ErrorCode::Corrupt, attend.layer.layer, 0,
                                  arguments.rows.first(attend.batch.count)));
    return {};
  }
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < attend.batch.count; i += threads.thread_count())
    tile_starts[i + 1] = ceil_div(static_cast<int>(arguments.rows.count(i)), each);
  threads.sync();
  if (threads.warp() == 0) sum_up(threads, tile_starts, attend.batch.count);
  threads.sync();
  PrefillPlan plan{};
  plan.tiles = tile_starts[attend.batch.count];
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < plan.tiles; i += threads.thread_count()) {
    const RowTile rows = row_tile(arguments, tile_starts, block_rows, i);
    unit_starts[i + 1] =
        TileList::of(attend, attend.layer.states[attend.batch.slots[rows.sequence]], rows).units();
  }
  threads.sync();
  if (threads.warp() == 0) sum_up(threads, unit_starts, plan.tiles);
  threads.sync();
  plan.total = unit_starts[plan.tiles] * attend.layer.kv_heads;
  if (plan.total > 0) plan.line = WorkLine::make(plan.total, threads.block_count());
  return plan;
}

/// A block's share of one item.
struct PrefillSegment {
  RowTile rows;
  TileList list;
  SequenceState state;
  int slot;
  int item;        ///< number over the launch
  int item_start;  ///< on the line
  int item_units;
  int first;  ///< unit of the item
  int last;   ///< one past
};

/// The segment that begins at `unit` of the line.
KVTILT_HD inline PrefillSegment find_segment(const PrefillArguments& arguments,
                                             const int* tile_starts, const int* unit_starts,
                                             int tiles, int block_rows, int unit, int end) {
  const AttendArguments& attend = arguments.attend;
  const int heads = attend.layer.kv_heads;
  const int tile = last_not_above(unit_starts, tiles, heads, unit);
  PrefillSegment segment{};
  segment.item_units = unit_starts[tile + 1] - unit_starts[tile];
  const int tile_start = unit_starts[tile] * heads;
  const int head = (unit - tile_start) / segment.item_units;
  segment.item = tile * heads + head;
  segment.item_start = tile_start + head * segment.item_units;
  segment.first = unit - segment.item_start;
  const int left = end - segment.item_start;
  segment.last = left < segment.item_units ? left : segment.item_units;
  segment.rows = row_tile(arguments, tile_starts, block_rows, tile);
  segment.rows.kv_head = head;
  segment.slot = attend.batch.slots[segment.rows.sequence];
  segment.state = attend.layer.states[segment.slot];
  segment.list = TileList::of(attend, segment.state, segment.rows);
  return segment;
}

}  // namespace kvtilt::cuda
