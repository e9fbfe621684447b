// SPDX-License-Identifier: MIT
/// Divides a prefill launch's work among its blocks. An item is a row tile: the query rows that a
/// block holds in its registers, some tokens of a chunk with all query heads of one kv head. It
/// attends to a list of tiles of 16 tokens: the sealed pages, sinks and tail of the past, then the
/// chunk up to the row tile's newest token, without what no row of the tile sees. A unit is four
/// tiles of the list, which a block takes together. Sinks within the chunk have tiles of their own
/// where keep_sinks shows them beyond the window, so that one rule holds for each tile. The units
/// of all items lie on one line, cut for the blocks as in work.hpp.
#pragma once

#include <kvtilt/cuda/attention/query.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>

#include <cstdint>

namespace kvtilt::cuda {

struct PrefillArguments {
  AttendArguments attend;  ///< its rows are the chunks
  TensorView keys;         ///< device, [rows, kv_heads, key_dim]
  TensorView values;
  int copied_pages;  ///< whether blocks have shared memory for a sealed page: PrefillShared
};

/// Tiles of 16 tokens in a unit.
inline constexpr int unit_tiles = 4;

/// Query rows of an item: row = token * gqa_ratio + query head of the kv head.
struct RowTile {
  int sequence;  ///< of the batch
  int kv_head;
  int token;               ///< the tile's first, in the chunk
  int tokens;              ///< of the tile
  int chunk_tokens;        ///< 0: the batch has no sequence here (slot < 0)
  std::int64_t first_row;  ///< of the tensors, for the chunk's first token
  std::int64_t past;       ///< position of the chunk's first token
  std::int64_t new_from;   ///< position of the first new token: the chunk's, or its tree's

  [[nodiscard]] KVTILT_HD int rows(int gqa_ratio) const { return tokens * gqa_ratio; }
  /// The least and the greatest position from which a window counts back. Under a tree mask a row's
  /// depends on its path, which can be as short or as long as any of the tree's.
  [[nodiscard]] KVTILT_HD std::int64_t oldest(SeenRows seen) const {
    return seen == SeenRows::Tree ? new_from : past + token;
  }
  [[nodiscard]] KVTILT_HD std::int64_t newest(SeenRows seen) const {
    return past + (seen == SeenRows::Tree ? chunk_tokens : token + tokens) - 1;
  }
};

/// Tokens in a row tile of `block_rows` rows.
KVTILT_HD constexpr int tile_tokens(int block_rows, int gqa_ratio) {
  return block_rows / gqa_ratio;
}

/// Of the tiles that positions [start, stop) are cut into, those that hold some of [begin, end).
struct TileRange {
  int first;
  int last;  ///< one past

  [[nodiscard]] KVTILT_HD static TileRange of(std::int64_t start, std::int64_t stop,
                                              std::int64_t begin, std::int64_t end) {
    if (begin < start) begin = start;
    if (end > stop) end = stop;
    if (begin >= end) return {0, 0};
    return {static_cast<int>(begin - start) / tile_extent,
            ceil_div(static_cast<int>(end - start), tile_extent)};
  }
};

/// The tiles of 16 tokens that a row tile attends to, in this order.
struct TileList {
  UnitCounts past;           ///< in tiles, also of pages
  int page_first = 0;        ///< no row sees pages before it
  int tail_first = 0;        ///< no row sees tail tiles before it
  int chunk_sinks = 0;       ///< first tokens of the chunk that have tiles of their own
  int chunk_sink_tiles = 0;  ///< those tiles
  int chunk_first = 0;       ///< first tile of the chunk's other tokens
  int chunk_end = 0;         ///< one past the last

  [[nodiscard]] KVTILT_HD int total() const {
    return past.total() + chunk_sink_tiles + chunk_end - chunk_first;
  }
  [[nodiscard]] KVTILT_HD int units() const { return ceil_div(total(), unit_tiles); }

  /// table  of the sequence; read only where rules hide something, by binary search
  [[nodiscard]] KVTILT_HD static TileList of(const AttendArguments& arguments,
                                             const SequenceState& state, const PageSlot* table,
                                             const RowTile& rows) {
    const AttendRules& rules = arguments.rules;
    TileList list;
    list.past = count_units(arguments.layer, state, arguments.layer.page_tokens / tile_extent);
    const int own = rows.token + rows.tokens;
    const SeenRows seen = rules.seen_rows(rows.chunk_tokens);
    const int chunk = seen != SeenRows::Causal || own > rows.chunk_tokens ? rows.chunk_tokens : own;
    list.chunk_end = ceil_div(chunk, tile_extent);
    std::int64_t begin = rules.first_position;
    if (rules.window > 0 && rows.oldest(seen) - rules.window + 1 > begin)
      begin = rows.oldest(seen) - rules.window + 1;
    const std::int64_t sinks = arguments.layer.sink_tokens - rows.past;
    if (sinks > 0 && rules.keep_sinks != 0 && rules.window > 0 &&
        rows.newest(seen) - rules.window >= rows.past)
      list.chunk_sinks = sinks < chunk ? static_cast<int>(sinks) : chunk;
    if (begin > 0 || rules.end_position < rows.past + chunk || list.chunk_sinks > 0)
      list.narrow(arguments, state, table, begin, rows.past + chunk);
    if (list.total() == 0) {  // one tile, so that a block writes the outputs
      list.chunk_first = 0;
      list.chunk_end = 1;
    }
    return list;
  }

 private:
  /// Leaves out tiles before `begin` and from rules.end_position on. The chunk's hold positions below
  /// `stop`.
  KVTILT_HD void narrow(const AttendArguments& arguments, const SequenceState& state,
                        const PageSlot* table, std::int64_t begin, std::int64_t stop) {
    const LayerView& layer = arguments.layer;
    const AttendRules& rules = arguments.rules;
    const std::int64_t end = rules.end_position;
    SequenceState seen = state;
    keep_pages(seen, table, begin, end);
    page_first = seen.first_page - state.first_page;
    past.page_units =
        begin < end ? (seen.page_end - seen.first_page) * (layer.page_tokens / tile_extent) : 0;
    if ((rules.keep_sinks != 0 ? rules.first_position : begin) >= layer.sink_tokens || end <= 0)
      past.sink_tiles = 0;
    const TileRange tail = TileRange::of(state.tail_start, state.length, begin, end);
    tail_first = tail.first;
    past.tail_tiles = tail.last - tail.first;
    const std::int64_t rest = state.length + chunk_sinks;
    chunk_sink_tiles = TileRange::of(state.length, rest, rules.first_position, end).last;
    const TileRange chunk = TileRange::of(rest, stop, begin, end);
    chunk_first = chunk.first;
    chunk_end = chunk.last;
  }
};

enum class TileSource : std::uint8_t { Nothing, Half, Chunk };

/// A tile that is not of a sealed page. Of a chunk: at.index is its first token there, at.block null.
struct SourceTile {
  TileSource source;
  TokenTile at;
};

/// tile  of the list, behind those of pages
KVTILT_HD inline SourceTile find_unsealed_tile(const LayerView& layer, int slot,
                                               const SequenceState& state, const RowTile& rows,
                                               const TileList& list, int tile) {
  SourceTile found{};
  if (tile < list.past.total()) {
    found.source = TileSource::Half;
    const int half = tile - list.past.page_units;
    found.at = half_tile(layer, layer.page_tokens, slot, state, list.past,
                         half < list.past.sink_tiles ? half : half + list.tail_first);
  } else if (tile < list.total()) {
    found.source = TileSource::Chunk;
    const int own = tile - list.past.total();
    const int other = own - list.chunk_sink_tiles;
    found.at.sink = other < 0;
    found.at.index = found.at.sink ? own * tile_extent
                                   : list.chunk_sinks + (list.chunk_first + other) * tile_extent;
    const int left = (found.at.sink ? list.chunk_sinks : rows.chunk_tokens) - found.at.index;
    found.at.first_position = rows.past + found.at.index;
    found.at.tokens = left < tile_extent ? left : tile_extent;
  }
  return found;
}

/// Index in the layer's tables of a list's first page.
KVTILT_HD inline std::int64_t first_slot(const LayerView& layer, int slot,
                                         const SequenceState& state, const TileList& list) {
  return slot * layer.table_stride + state.first_page + list.page_first;
}

/// Table entry of a tile's sealed page; empty if the tile is not of one.
///
/// page_tiles  tiles of a page
KVTILT_HD inline PageSlot page_of_tile(const LayerView& layer, std::int64_t first_slot,
                                       const TileList& list, int tile, int page_tiles) {
  if (tile >= list.past.page_units) return {};
  return layer.tables[first_slot + tile / page_tiles];
}

/// Most groups of row tiles. A block stores where each group's units start: small devices have too
/// little shared memory to store that for each row tile.
inline constexpr int most_tile_groups = 128;

/// The line of a launch, planned anew by each block.
struct PrefillPlan {
  WorkLine line;
  int tiles;  ///< row tiles of one kv head, over the batch
  int group;  ///< row tiles of a group; the last may have fewer
  int total;  ///< units

  [[nodiscard]] KVTILT_HD int groups() const { return ceil_div(tiles, group); }
};

/// Row tile `tile` of the batch; the caller sets its kv head.
KVTILT_HD inline RowTile row_tile(const PrefillArguments& arguments, const int* tile_starts,
                                  int block_rows, int tile) {
  const int sequence = last_not_above(tile_starts, arguments.attend.batch.count, 1, tile);
  RowTile rows{};
  rows.sequence = sequence;
  rows.chunk_tokens = arguments.attend.queries(sequence);
  rows.first_row = arguments.attend.rows.first(sequence);
  const int each = tile_tokens(block_rows, arguments.attend.gqa_ratio);
  rows.token = (tile - tile_starts[sequence]) * each;
  const int left = rows.chunk_tokens - rows.token;
  rows.tokens = left < each ? left : each;
  const std::int32_t slot = arguments.attend.batch.slots[sequence];
  rows.past = arguments.attend.layer.state(slot).next_position();
  rows.new_from = rows.past + rows.chunk_tokens - arguments.attend.new_tokens(sequence);
  if (slot < 0) rows.chunk_tokens = 0;
  return rows;
}

/// A row tile and what it attends to.
struct PrefillItem {
  RowTile rows;  ///< kv head 0
  TileList list;
  SequenceState state;
  int slot;

  [[nodiscard]] KVTILT_HD static PrefillItem of(const PrefillArguments& arguments,
                                                const int* tile_starts, int block_rows, int tile) {
    const AttendArguments& attend = arguments.attend;
    PrefillItem item;
    item.rows = row_tile(arguments, tile_starts, block_rows, tile);
    item.slot = attend.batch.slots[item.rows.sequence];
    item.state = attend.layer.state(item.slot);
    item.list = TileList::of(attend, item.state, attend.layer.table(item.slot), item.rows);
    return item;
  }
};

/// A line has fewer units than this.
inline constexpr std::int64_t most_units = 0x7fffffff;

/// Counts the row tiles before each sequence, by one warp. If the rows are invalid, their sum is -1,
/// and the layer's record reports it.
template <class Threads>
KVTILT_HD void count_row_tiles(Threads& threads, const AttendArguments& attend, int block_rows,
                               int* tile_starts) {
  const int count = attend.batch.count;
  if (!rows_are_sound(threads, attend.layer, attend.batch, attend.rows, attend.row_count,
                      DeviceFault::BadAttendRows)) {
    if (threads.lane() == 0) tile_starts[count] = -1;
    return;
  }
  const int each = tile_tokens(block_rows, attend.gqa_ratio);
  KVTILT_DEVICE_LOOP
  for (int i = threads.lane(); i < count; i += warp_lanes)
    tile_starts[i + 1] = ceil_div(attend.queries(i), each);
  sum_up(threads, tile_starts, count);
}

/// Turns the units of each group, in starts[1] on, into the units before each, of one kv head; one
/// warp calls it. If all heads have most_units or more, there are no units, and the record has an
/// error: each row tile counts the past again, so thousands of row tiles over millions of tokens
/// reach that.
template <class Threads>
KVTILT_HD void sum_up_units(Threads& threads, const AttendArguments& attend, int* starts,
                            int groups) {
  std::int64_t total = 0;
  KVTILT_DEVICE_LOOP
  for (int i = threads.lane(); i < groups; i += warp_lanes) total += starts[i + 1];
  KVTILT_DEVICE_LOOP
  for (int mask = 1; mask < warp_lanes; mask *= 2) total += threads.shuffle_xor(total, mask);
  total *= attend.layer.kv_heads;
  if (total < most_units) {
    sum_up(threads, starts, groups);
    return;
  }
  if (threads.lane() != 0) return;
  starts[groups] = 0;
  if (threads.block() == 0)
    record_error(threads, attend.layer.records,
                 sequence_fault(DeviceFault::TooMuchWork, attend.layer.layer, -1, total));
}

/// Plans the launch; has no units where count_row_tiles() or sum_up_units() records an error.
///
/// tile_starts  [sequences + 1]: row tiles before each
/// unit_starts  [most_tile_groups + 1]: units before each, of one kv head
template <class Threads>
KVTILT_HD PrefillPlan plan_prefill(Threads& threads, const PrefillArguments& arguments,
                                   int block_rows, int* tile_starts, int* unit_starts) {
  const AttendArguments& attend = arguments.attend;
  if (threads.warp() == 0) count_row_tiles(threads, attend, block_rows, tile_starts);
  threads.sync();
  PrefillPlan plan{};
  if (tile_starts[attend.batch.count] < 0) return plan;
  plan.tiles = tile_starts[attend.batch.count];
  plan.group = plan.tiles > most_tile_groups ? ceil_div(plan.tiles, most_tile_groups) : 1;
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < plan.groups(); i += threads.thread_count()) {
    std::int64_t units = 0;
    KVTILT_DEVICE_LOOP
    for (int tile = i * plan.group; tile < (i + 1) * plan.group && tile < plan.tiles; ++tile)
      units += PrefillItem::of(arguments, tile_starts, block_rows, tile).list.units();
    unit_starts[i + 1] = static_cast<int>(units < most_units ? units : most_units);
  }
  threads.sync();
  if (threads.warp() == 0) sum_up_units(threads, attend, unit_starts, plan.groups());
  threads.sync();
  plan.total = unit_starts[plan.groups()] * attend.layer.kv_heads;
  if (plan.total > 0) plan.line = WorkLine::make(plan.total, threads.block_count());
  return plan;
}

/// A block's part of one item.
struct PrefillSegment : PrefillItem {
  PlainRange plain;
  std::int64_t first_slot;    ///< of the layer's tables: the item's first page
  std::uint64_t head_offset;  ///< in a sealed page
  int head_bytes;
  int item_start;  ///< on the line
  int item_units;
  int first;     ///< unit of the item
  int last;      ///< one past
  int page_end;  ///< units before it are sealed pages, if a page is one unit
  int copied;    ///< pages that the block copied before: the barrier's parity

  [[nodiscard]] KVTILT_HD int pages() const { return page_end > first ? page_end - first : 0; }
};

/// Finds the segment that begins at `unit` of the line, and ends at `end` or with its item.
KVTILT_HD inline PrefillSegment find_segment(const PrefillArguments& arguments,
                                             const int* tile_starts, const int* unit_starts,
                                             const PrefillPlan& plan, int block_rows, int unit,
                                             int end) {
  const LayerView& layer = arguments.attend.layer;
  const int heads = layer.kv_heads;
  const int group = last_not_above(unit_starts, plan.groups(), heads, unit);
  int tile = group * plan.group;
  int tile_start = unit_starts[group] * heads;
  PrefillSegment segment{};
  KVTILT_DEVICE_LOOP
  for (;; ++tile) {
    static_cast<PrefillItem&>(segment) = PrefillItem::of(arguments, tile_starts, block_rows, tile);
    segment.item_units = segment.list.units();
    if (unit - tile_start < segment.item_units * heads) break;
    tile_start += segment.item_units * heads;
  }
  const int head = (unit - tile_start) / segment.item_units;
  segment.rows.kv_head = head;
  const SeenRows seen = arguments.attend.rules.seen_rows(segment.rows.chunk_tokens);
  segment.plain = PlainRange::of(arguments.attend.rules, segment.rows.oldest(seen),
                                 segment.rows.newest(seen), segment.rows.new_from, seen);
  segment.item_start = tile_start + head * segment.item_units;
  segment.first = unit - segment.item_start;
  const int left = end - segment.item_start;
  segment.last = left < segment.item_units ? left : segment.item_units;
  segment.page_end = segment.list.past.page_units / unit_tiles;
  if (segment.page_end > segment.last) segment.page_end = segment.last;
  segment.first_slot = first_slot(layer, segment.slot, segment.state, segment.list);
  const HeadLayout& sealed = layer.head(PageKind::Sealed, head);
  segment.head_offset = sealed.offset;
  segment.head_bytes = static_cast<int>(sealed.value.end());
  return segment;
}

}  // namespace kvtilt::cuda
