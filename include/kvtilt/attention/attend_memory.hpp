// SPDX-License-Identifier: MIT
/// An upper bound of the workspace that attend() will need, before there is a cache.
#pragma once

#include <kvtilt/attention/attend.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Upper limits of all calls of attend() to come.
struct AttendStep {
  std::int64_t tokens = 0;   ///< per sequence
  int query_heads = 0;       ///< exactly; a multiple of the layer's kv_heads
  std::int64_t queries = 1;  ///< per sequence, 1 to 2^20
  int sequences = 1;         ///< per batch
  int workers = 1;           ///< of its ParallelFor
};

namespace detail {

inline Status check_step(const LayerShape& shape, const CacheOptions& options,
                         const AttendStep& step) {
  KVTILT_RETURN_IF_ERROR(check_tokens(step.tokens));
  KVTILT_RETURN_IF_ERROR(check_workers({step.workers, nullptr, nullptr}));
  if (step.query_heads < 1 || step.query_heads % shape.kv_heads != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "query_heads is %d, must be a multiple of kv_heads, which is %d",
                         step.query_heads, shape.kv_heads);
  if (step.queries < 1 || step.queries > most_step_queries)
    return Status::error(ErrorCode::InvalidArgument, "queries is %lld, must be 1 to %lld",
                         static_cast<long long>(step.queries),
                         static_cast<long long>(most_step_queries));
  if (step.sequences < 1 || step.sequences > options.max_sequences)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequences is %d, must be 1 to max_sequences, which is %d", step.sequences,
                         options.max_sequences);
  return {};
}

/// The most query rows of a batch that are in split tiles: split_tiles() splits fewer than
/// share_tiles * workers tiles, whatever the lengths of the sequences.
inline std::int64_t most_split_rows(const LayerShape& shape, const AttendStep& step) {
  const std::int64_t rows = step.queries * step.query_heads;  // of a sequence
  const std::int64_t most =
      (share_tiles * step.workers - 1) * std::min<std::int64_t>(tile_rows, rows / shape.kv_heads);
  return std::min(most, step.sequences * std::min(rows, most));
}

}  // namespace detail

/// Bytes of workspace that suffice for attend() on every batch of one layer within the limits of
/// `step`: an upper bound of attend_workspace_bytes(requests, workers). The maximum over a model's
/// layers serves them all. The bound is exact for one worker, and if all sequences have step.tokens
/// tokens, the layer has no window, and the batch has too few tiles for the workers (see attend()).
///
/// Assumes that no truncation has cut a sealed page. Each such cut can add a page to the table;
/// attend() refuses a workspace that is then too small.
///
/// Fails  InvalidArgument with the number that is out of range; OutOfMemory beyond 2^56 bytes
inline Result<std::size_t> attend_workspace_bytes(const LayerShape& shape,
                                                  const CacheOptions& options,
                                                  const AttendStep& step) {
  KVTILT_RETURN_IF_ERROR(check_options(options));
  KVTILT_RETURN_IF_ERROR(check_shape(shape, unnumbered_layer));
  if (shape.kv_heads == 0) return std::size_t{0};
  KVTILT_RETURN_IF_ERROR(detail::check_step(shape, options, step));
  const std::int64_t spans =
      (token_placement(options, shape).most_entries(step.tokens) + detail::span_pages - 1) /
      detail::span_pages;
  const auto rows = static_cast<std::size_t>(detail::most_split_rows(shape, step));
  const std::size_t row_floats =
      static_cast<std::size_t>(spans) * detail::AttentionTile::span_floats(shape.value_dim);
  const bool split = step.workers > 1 && spans > 1;
  if (split && row_floats > (std::size_t{1} << 54) / rows)
    return Status::error(ErrorCode::OutOfMemory,
                         "partial results of %zu query rows take more than 2^56 bytes", rows);

  AttendRequest request;
  request.view.shape = shape;
  request.view.max_page_tokens = std::max(options.page_tokens, sink_slots(options.sink_tokens));
  const detail::Work work = detail::make_work(request);
  detail::WorkspaceCarver carver(nullptr);
  (void)carver.take<detail::Work>(static_cast<std::size_t>(step.sequences));
  (void)carver.take<float>(split ? rows * row_floats : 0);
  (void)carver.take<std::byte>(static_cast<std::size_t>(step.workers) *
                               detail::tile_bytes({&work, 1}));
  return carver.used() + page_alignment;
}

}  // namespace kvtilt
