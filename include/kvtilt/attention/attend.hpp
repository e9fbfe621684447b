// SPDX-License-Identifier: MIT
/// Attention, softmax(q k^T * scale) v, computed on the codes of a cache without unpacking it.
#pragma once

#include <kvtilt/attention/parallel_for.hpp>
#include <kvtilt/attention/work.hpp>
#include <kvtilt/core/attend_options.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt {

/// The queries of one sequence's newest tokens in one layer. See attend() for the shapes.
struct AttendRequest {
  LayerView view;
  TensorView queries;
  OutputView out;
  AttendOptions options = {};
};

namespace detail {

/// The most queries of a sequence where their number is not bounded by its length.
inline constexpr std::int64_t most_step_queries = 1 << 20;

inline Work make_work(const LayerView& view, const TensorView& queries, const OutputView& out,
                      const AttendOptions& options, std::int64_t first_position) {
  Work work{};
  work.view = &view;
  work.queries = queries;
  work.out = out;
  work.options = &options;
  work.first_position = first_position;
  return work;
}

inline Work make_work(const AttendRequest& request) {
  return make_work(request.view, request.queries, request.out, request.options,
                   request.view.length - request.queries.tokens);
}

/// InvalidArgument if there are more queries than tokens and so not a position for each, unless nothing
/// depends on positions.
inline Status check_query_count(const AttendRequest& request) {
  const std::int64_t queries = request.queries.tokens;
  const std::int64_t length = request.view.length;
  const AttendOptions& options = request.options;
  if (queries <= length) return {};
  const char* reason = nullptr;
  if (options.causal)
    reason = "append the newest tokens first";
  else if (effective_window(request.view, options) > 0 || !options.alibi_slopes.empty())
    reason = "a window or ALiBi needs a position for each";
  else if (queries > most_step_queries)
    reason = "with more than tokens, at most 2^20";
  else
    return {};
  return Status::error(ErrorCode::InvalidArgument, "%lld queries for %lld tokens: %s",
                       static_cast<long long>(queries), static_cast<long long>(length), reason);
}

inline Status check_request(const AttendRequest& request) {
  const LayerView& view = request.view;
  KVTILT_RETURN_IF_ERROR(check_attention(view, request.queries, request.out, request.options));
  KVTILT_RETURN_IF_ERROR(check_query_count(request));
  const std::int64_t first = std::max<std::int64_t>(0, view.length - request.queries.tokens);
  return check_kept(view, request.options, first, view.length);
}

/// Lays out a batch in the workspace; if that is null, only computes `bytes`.
struct AttendWorkspace {
  std::span<Work> works;
  std::byte* tiles;
  std::size_t bytes_per_tile;
  std::size_t bytes;

  AttendWorkspace(std::span<const AttendRequest> requests, int workers, std::byte* workspace) {
    WorkspaceCarver carver(workspace);
    works = {carver.take<Work>(requests.size()), requests.size()};
    std::int64_t batch_pages = 0;
    for (const AttendRequest& request : requests) batch_pages += tile_pages(make_work(request));
    std::size_t floats = 0;
    bytes_per_tile = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      Work work = make_work(requests[i]);
      split_tiles(work, batch_pages, workers);
      floats += partial_floats(work);
      bytes_per_tile = std::max(bytes_per_tile, tile_bytes({&work, 1}));
      if (workspace != nullptr) new (&works[i]) Work(work);
    }
    float* partials = carver.take<float>(floats);
    tiles = carver.take<std::byte>(static_cast<std::size_t>(workers) * bytes_per_tile);
    bytes = carver.used() + page_alignment;  // slack to align the start, as in attend_memory.hpp
    if (workspace == nullptr) return;
    number_items(works);
    for (Work& work : works) {
      work.partials = partials;
      partials += partial_floats(work);
    }
  }
};

}  // namespace detail

/// Bytes of workspace that attend() needs for a batch. With one worker they do not depend on the
/// sequences' lengths. attend_memory.hpp has an upper bound over all batches of given limits.
inline std::size_t attend_workspace_bytes(std::span<const AttendRequest> requests,
                                          int workers = 1) {
  return detail::AttendWorkspace(requests, workers, nullptr).bytes;
}

/// The same for a single request served by one worker: any number of queries.
inline std::size_t attend_workspace_bytes(const LayerView& view) {
  const AttendRequest request{view, {}, {}, {}};
  return attend_workspace_bytes({&request, 1});
}

/// Computes attention for the newest tokens of many sequences, which must already have been appended.
/// Query i of n has position length - n + i and sees every position up to its own, inside the layer's
/// window, unless its options say otherwise (attend_options.hpp has the order of operations).
///
/// queries    [n, query_heads, key_dim], n <= length or, without causality, window and ALiBi, up to
///            2^20; query_heads is a multiple of kv_heads, and query head h reads kv head
///            h / (query_heads / kv_heads)
/// out        [n, query_heads, value_dim], normalised; lse [n, query_heads] if wanted. A query
///            that sees no token gives 0 and lse = -infinity (or its head's sink logit). A query
///            with NaN or infinity has undefined results, which do not affect other queries
/// workspace  attend_workspace_bytes(requests, parallel.workers) bytes, any alignment
/// Error      Arithmetic::Exact: compared with float64 on the stored values, at most (1e-5 + 8 *
///            2^-24 * max sum|q k| * scale) * max|v|, for any length. In it a k or v counts as large
///            as the largest of its quantization group, because codes and minima are summed apart.
///            If all products of a sum are equal (constant q and k), so are their rounding errors,
///            and 8 becomes key_dim / 2. A soft-cap adds 2^-21 * soft_cap inside the parentheses.
///            Arithmetic::Fast: see there
/// Fails      InvalidArgument (shapes, options, workspace; names the values); nothing is written then
/// Cost       reads every page that a query sees once per kv head and tile of 16 query rows; no
///            allocation. Pages outside the tile's range and window cost nothing. If a tile is long, or
///            tiles are too few for the workers, it is split into spans of 32 pages: a single sequence
///            keeps up to tiles * spans workers busy
inline Status attend(std::span<const AttendRequest> requests, std::span<std::byte> workspace,
                     const ParallelFor& parallel = {}) {
  for (const AttendRequest& request : requests)
    KVTILT_RETURN_IF_ERROR(detail::check_request(request));
  KVTILT_RETURN_IF_ERROR(detail::check_workers(parallel));
  if (detail::has_no_queries(requests)) return {};
  KVTILT_RETURN_IF_ERROR(
      detail::check_workspace(workspace, attend_workspace_bytes(requests, parallel.workers)));
  const detail::AttendWorkspace layout(requests, parallel.workers,
                                       detail::align_workspace(workspace.data()));
  detail::run_batch(layout.works, layout.tiles, layout.bytes_per_tile, parallel);
  return {};
}

/// One sequence on the calling thread.
inline Status attend(const LayerView& view, const TensorView& queries, const OutputView& out,
                     const AttendOptions& options, std::span<std::byte> workspace) {
  const AttendRequest request{view, queries, out, options};
  return attend({&request, 1}, workspace);
}

}  // namespace kvtilt
