// SPDX-License-Identifier: MIT
/// Splits attention over a ragged batch into items that workers take from one counter.
///
/// An item is a tile (up to 16 query rows of one kv head) over all its pages or, if there are too few
/// whole tiles to keep the workers busy, over one span of pages; the partial results of its spans are
/// then merged in order. A tile that is not split adds up the same spans in the same order, so
/// splitting changes no bit.
#pragma once

#include <kvtilt/attention/parallel_for.hpp>
#include <kvtilt/attention/query_rules.hpp>
#include <kvtilt/attention/seen_pages.hpp>
#include <kvtilt/attention/tile.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::detail {

/// One request of a batch, checked.
struct Work {
  const LayerView* view;
  TensorView queries;
  OutputView out;
  const AttendOptions* options;
  std::int64_t first_position;    ///< of query 0
  const HeadLayout* chunk_head;   ///< prefill: layout of the chunk's 16-bit blocks, else null
  const std::byte* chunk_blocks;  ///< [kv_heads][blocks]
  std::int64_t chunk_tokens;

  std::int64_t first_item;  ///< index of its first item in the batch
  std::int64_t first_tile;  ///< index of its first tile in the batch
  int sink_spans = 0;       ///< of split tiles: 1 if the first is there for its sinks alone
  int skipped_spans = 0;    ///< likewise: those behind sink_spans that no query sees
  int spans = 1;            ///< items per tile: 1 unless tiles are split
  float* partials;          ///< [tile][span][row of the tile], if tiles are split

  /// Query heads per kv head; 0 for a view that comes from no cache, which is refused later.
  [[nodiscard]] int gqa_ratio() const {
    return view->shape.kv_heads > 0 ? queries.heads / view->shape.kv_heads : 0;
  }
  [[nodiscard]] std::int64_t rows() const { return queries.tokens * gqa_ratio(); }
  [[nodiscard]] std::int64_t tiles_per_head() const { return (rows() + tile_rows - 1) / tile_rows; }
  [[nodiscard]] std::int64_t tiles() const { return tiles_per_head() * view->shape.kv_heads; }
  [[nodiscard]] int rows_of(std::int64_t tile) const {
    const std::int64_t start = tile % tiles_per_head() * tile_rows;
    return static_cast<int>(std::min<std::int64_t>(tile_rows, rows() - start));
  }
  /// Rows in all tiles before this one.
  [[nodiscard]] std::int64_t first_row(std::int64_t tile) const {
    return tile / tiles_per_head() * rows() + tile % tiles_per_head() * tile_rows;
  }
  /// Finds the token and the query head of a tile's row.
  void locate(std::int64_t tile, int row, std::int64_t& token, int& head) const {
    const std::int64_t index = tile % tiles_per_head() * tile_rows + row;
    token = index / gqa_ratio();
    head = static_cast<int>(tile / tiles_per_head()) * gqa_ratio() +
           static_cast<int>(index % gqa_ratio());
  }
};

/// Tokens per 16-bit block of a prefill chunk.
inline constexpr int chunk_block_tokens = 64;

inline std::int64_t chunk_block_count(std::int64_t tokens) {
  return (tokens + chunk_block_tokens - 1) / chunk_block_tokens;
}

/// Tiles are split if fewer than this fit in a worker's share of the batch's pages: waiting for the
/// last tile then costs at most an eighth of the time. Chosen, not measured.
inline constexpr std::int64_t share_tiles = 8;

/// Pages that the tiles of a request read, summed over its tiles.
inline std::int64_t tile_pages(const Work& work) { return work.tiles() * work.view->page_count; }

/// Splits the tiles of a request into the spans that some query sees, in a batch whose tile_pages add
/// up to `batch_pages`. In any batch fewer than share_tiles * workers tiles are split. The options may
/// only take spans away: a workspace that was measured without them suffices.
inline void split_tiles(Work& work, std::int64_t batch_pages, int workers) {
  const LayerView& view = *work.view;
  if (workers <= 1 || view.page_count <= batch_pages / (share_tiles * workers)) return;
  const AttendOptions& options = *work.options;
  const std::int64_t end = work.first_position + work.queries.tokens;
  SeenPositions seen{oldest_seen(view, options, work.first_position, end),
                     std::min(options.end_position, end)};
  if (view.shape.keep_sinks && view.sink_tokens == 0) seen.first = options.first_position;
  const TableRange pages = pages_of(view, seen);
  const int first = pages.first / span_pages;
  work.sink_spans = view.shape.keep_sinks && first > 0 && view.sink_tokens > 0 ? 1 : 0;
  work.skipped_spans = first - work.sink_spans;
  work.spans = std::max(1, (pages.last + span_pages - 1) / span_pages - work.skipped_spans);
}

/// Numbers items and tiles.
inline void number_items(std::span<Work> works) {
  std::int64_t item = 0;
  std::int64_t tile = 0;
  for (Work& work : works) {
    work.first_item = item;
    work.first_tile = tile;
    item += work.tiles() * work.spans;
    tile += work.tiles();
  }
}

inline AttentionTile carve_tile(const Work& work, WorkspaceCarver& carver) {
  return {work.view->shape, std::max(work.view->max_page_tokens, chunk_block_tokens),
          work.view->kernels, work.options->arithmetic, carver};
}

/// Bytes of the largest tile of a batch.
inline std::size_t tile_bytes(std::span<const Work> works) {
  std::size_t bytes = 0;
  for (const Work& work : works) {
    WorkspaceCarver measure(nullptr);
    (void)carve_tile(work, measure);
    bytes = std::max(bytes, round_up(measure.used(), page_alignment));
  }
  return bytes;
}

/// Floats that the partial results of a request take; 0 unless its tiles are split.
inline std::size_t partial_floats(const Work& work) {
  if (work.spans == 1) return 0;
  return static_cast<std::size_t>(work.rows() * work.view->shape.kv_heads * work.spans) *
         AttentionTile::span_floats(work.view->shape.value_dim);
}

inline Status check_workers(const ParallelFor& parallel) {
  if (parallel.workers >= 1) return {};
  return Status::error(ErrorCode::InvalidArgument, "%d workers cannot do anything",
                       parallel.workers);
}

inline Status check_workspace(std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.size() < needed)
    return Status::error(ErrorCode::InvalidArgument, "the workspace has %zu bytes, %zu are needed",
                         workspace.size(), needed);
  return {};
}

/// Rounds the start of a workspace, which may be anywhere, up to page_alignment.
inline std::byte* align_workspace(std::byte* workspace) {
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  return workspace + (round_up(address, page_alignment) - address);
}

/// Everything the workers share.
struct Batch {
  std::span<const Work> works;
  std::byte* tiles;  ///< [workers][tile_bytes]
  std::size_t tile_bytes;
  std::atomic<std::int64_t> next{0};
};

/// Writes one query times `factor` to `out`, a row of a tile.
inline void load_query(const Work& work, std::int64_t token, int head, float factor, float* out) {
  const TensorView& queries = work.queries;
  if (queries.type == ElementType::F32)
    std::copy_n(queries.row<float>(token, head), queries.dim, out);
  else
    for (int channel = 0; channel < queries.dim; ++channel)
      out[channel] = element(queries, token, head, channel);
  work.view->kernels->scale(out, queries.dim, factor);
}

/// Gives a tile its rows; returns what they see.
inline SeenPositions fill_rows(const Work& work, std::int64_t tile_index, AttentionTile& tile,
                               bool with_queries) {
  const RowRules rules(*work.view, work.queries, *work.options, work.first_position);
  SeenPositions seen;
  tile.clear();
  for (int r = 0; r < work.rows_of(tile_index); ++r) {
    std::int64_t token = 0;
    int head = 0;
    work.locate(tile_index, r, token, head);
    const RowRule rule = rules.row(token, head);
    seen.add(rule);
    float* query = tile.add_row(rule);
    if (with_queries) load_query(work, token, head, rules.query_factor(), query);
  }
  return seen;
}

/// Bytes between two blocks. They may come from different allocations: pointers cannot be subtracted.
inline std::ptrdiff_t distance(const std::byte* from, const std::byte* to) {
  return static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(to) -
                                     reinterpret_cast<std::uintptr_t>(from));
}

/// Adds the pages of `range` that hold what the rows see, span by span; the last span is not ended.
/// Groups end at fixed positions and spans at fixed entries of the table, so that a query has the same
/// bits whatever others are attended with it, and whatever pages are left out.
inline void add_pages(const Work& work, int kv_head, const SeenPositions& seen, TableRange range,
                      AttentionTile& tile) {
  const std::int64_t first_sink = work.options->first_position;
  TableRange pages = pages_of(*work.view, seen);
  const int last = std::min(range.last, pages.last);
  pages.first = std::min(pages.first, last);
  std::int64_t group = -1;
  int span = -1;
  for (int index = next_page(*work.view, pages, first_sink, range.first); index < last;
       index = next_page(*work.view, pages, first_sink, index + 1)) {
    if (span >= 0 && index / span_pages != span) tile.end_span();
    span = index / span_pages;
    const PageEntry& page = work.view->pages[index];
    const HeadLayout& head = work.view->head(page.kind, kv_head);
    const std::byte* block = page.data + head.offset;
    const int joined = AttentionTile::joined_pages(head);
    const std::int64_t group_tokens = std::int64_t{joined} * head.value.matrix.inner;
    const std::int64_t own = (page.first_position - work.view->sink_tokens) / group_tokens;
    if (own != group) tile.end_group();
    group = own;
    std::ptrdiff_t prefetch_offset = 0;
    if (const int ahead = next_page(*work.view, pages, first_sink, index + joined); ahead < last) {
      const PageEntry& following = work.view->pages[ahead];
      prefetch_offset =
          distance(block, following.data + work.view->head(following.kind, kv_head).offset);
    }
    tile.add_page(head, block, prefetch_offset, page.first_position, page.tokens,
                  page.kind == PageKind::Sinks);
  }
}

inline void add_chunk(const Work& work, int kv_head, AttentionTile& tile) {
  if (work.chunk_head == nullptr) return;
  const std::int64_t blocks = chunk_block_count(work.chunk_tokens);
  for (std::int64_t index = 0; index < blocks; ++index) {
    if (index % span_pages == 0) tile.end_span();
    const std::int64_t first = index * chunk_block_tokens;
    tile.add_page(
        *work.chunk_head,
        work.chunk_blocks +
            static_cast<std::size_t>(kv_head * blocks + index) * work.chunk_head->bytes(),
        index + 1 < blocks ? static_cast<std::ptrdiff_t>(work.chunk_head->bytes()) : 0,
        work.first_position + first,
        static_cast<int>(std::min<std::int64_t>(chunk_block_tokens, work.chunk_tokens - first)),
        false);
  }
}

inline void write_rows(const Work& work, std::int64_t tile_index, AttentionTile& tile) {
  tile.end_span();
  for (int r = 0; r < work.rows_of(tile_index); ++r) {
    std::int64_t token = 0;
    int head = 0;
    work.locate(tile_index, r, token, head);
    const float lse = tile.finish(r, work.out.row(token, head));
    if (work.out.lse != nullptr) work.out.lse[token * work.out.heads + head] = lse;
  }
}

/// Where the partial result of one span of a tile is stored.
inline float* partial(const Work& work, std::int64_t tile, int span) {
  const std::int64_t row = work.first_row(tile) * work.spans + span * work.rows_of(tile);
  return work.partials +
         static_cast<std::size_t>(row) * AttentionTile::span_floats(work.view->shape.value_dim);
}

/// First pass: computes a tile over all its pages, or over one span of them.
inline void run_item(const Work& work, std::int64_t item, AttentionTile& tile) {
  const std::int64_t tile_index = item / work.spans;
  const int span = static_cast<int>(item % work.spans);
  const int kv_head = static_cast<int>(tile_index / work.tiles_per_head());
  const SeenPositions seen = fill_rows(work, tile_index, tile, true);
  if (work.spans == 1) {
    add_pages(work, kv_head, seen, {0, work.view->page_count}, tile);
    add_chunk(work, kv_head, tile);
    write_rows(work, tile_index, tile);
    return;
  }
  const int first = (span < work.sink_spans ? span : span + work.skipped_spans) * span_pages;
  add_pages(work, kv_head, seen, {first, std::min(work.view->page_count, first + span_pages)},
            tile);
  tile.store_span(partial(work, tile_index, span));
}

/// Second pass: merges the spans of a split tile in order.
inline void merge_item(const Work& work, std::int64_t tile_index, AttentionTile& tile) {
  if (work.spans == 1) return;
  fill_rows(work, tile_index, tile, false);
  for (int span = 0; span < work.spans; ++span) tile.add_span(partial(work, tile_index, span));
  write_rows(work, tile_index, tile);
}

/// Takes items from the counter until none is left. `First` is the member that numbers them (items or
/// tiles), `Run` processes one.
template <std::int64_t Work::*First, void (*Run)(const Work&, std::int64_t, AttentionTile&)>
void take_items(void* argument, int worker) {
  Batch& batch = *static_cast<Batch*>(argument);
  const Work& last = batch.works.back();
  const std::int64_t items =
      last.*First + last.tiles() * (First == &Work::first_item ? last.spans : 1);
  std::byte* memory = batch.tiles + static_cast<std::size_t>(worker) * batch.tile_bytes;
  for (std::int64_t item = batch.next++; item < items; item = batch.next++) {
    const auto after =
        std::upper_bound(batch.works.begin(), batch.works.end(), item,
                         [](std::int64_t index, const Work& work) { return index < work.*First; });
    const Work& work = *(after - 1);
    WorkspaceCarver carver(memory);
    AttentionTile tile = carve_tile(work, carver);
    Run(work, item - work.*First, tile);
  }
}

/// Whether a batch has no queries; it then needs no workspace.
template <class Request>
bool has_no_queries(std::span<const Request> requests) {
  return std::all_of(requests.begin(), requests.end(),
                     [](const Request& request) { return request.queries.tokens == 0; });
}

/// Runs a numbered batch. `tiles` holds tile_bytes(works) bytes per worker.
inline void run_batch(std::span<const Work> works, std::byte* tiles, std::size_t bytes_per_tile,
                      const ParallelFor& parallel) {
  if (works.empty()) return;
  Batch batch{works, tiles, bytes_per_tile};
  parallel(&take_items<&Work::first_item, &run_item>, &batch);
  if (std::none_of(works.begin(), works.end(), [](const Work& work) { return work.spans > 1; }))
    return;
  batch.next = 0;
  parallel(&take_items<&Work::first_tile, &merge_item>, &batch);
}

}  // namespace kvtilt::detail
