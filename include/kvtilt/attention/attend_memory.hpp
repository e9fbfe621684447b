// SPDX-License-Identifier: MIT
/// What attend() will ask for, before there is a cache.
#pragma once

#include <kvtilt/attention/attend.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// The largest call of attend() that there will be.
struct AttendStep {
  std::int64_t tokens = 0;   ///< the most of a sequence
  int query_heads = 0;       ///< a multiple of the layer's kv_heads
  std::int64_t queries = 1;  ///< the most of a sequence, 1 to 2^20
  int sequences = 1;         ///< the most in one batch
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
  if (step.queries < 1 || step.queries > (1 << 20))
    return Status::error(ErrorCode::InvalidArgument, "queries is %lld, must be 1 to 1048576",
                         static_cast<long long>(step.queries));
  if (step.sequences < 1 || step.sequences > options.max_sequences)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequences is %d, must be 1 to max_sequences, which is %d", step.sequences,
                         options.max_sequences);
  return {};
}

/// The most rows of a batch whose pages are split: spans_of() splits fewer than
/// share_tiles * workers tiles, however long the sequences are beside each other.
inline std::int64_t most_split_rows(const LayerShape& shape, const AttendStep& step) {
  const std::int64_t rows = step.queries * step.query_heads;  // of a sequence
  const std::int64_t most =
      (share_tiles * step.workers - 1) * std::min<std::int64_t>(tile_rows, rows / shape.kv_heads);
  return std::min(most, step.sequences * std::min(rows, most));
}

}  // namespace detail

/// Bytes that suffice attend() for every batch of one layer that has no more sequences, tokens,
/// queries and workers than the step: an upper bound of attend_workspace_bytes(requests, workers).
/// The most over a model's layers serves them all. Exact for one worker, and where all sequences
/// have step.tokens tokens, no window, and together too few tiles for the workers (attend()).
///
/// Assumes that no truncation cut a sealed page in two. Each that does can add a page; a workspace
/// that then does not suffice is refused by attend().
///
/// Fails  InvalidArgument with the number that is out of range; OutOfMemory beyond 2^56 bytes
inline Result<std::size_t> attend_workspace_bytes(const LayerShape& shape,
                                                  const CacheOptions& options,
                                                  const AttendStep& step) {
  KVTILT_RETURN_IF_ERROR(check_options(options));
  KVTILT_RETURN_IF_ERROR(check_shape(shape, 0));
  if (shape.kv_heads == 0) return std::size_t{0};
  KVTILT_RETURN_IF_ERROR(detail::check_step(shape, options, step));
  TokenPlacement placement = token_placement(options);
  placement.window = shape.window;
  const std::int64_t spans =
      (placement.most_entries(step.tokens) + detail::span_pages - 1) / detail::span_pages;
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
