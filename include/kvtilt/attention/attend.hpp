// SPDX-License-Identifier: MIT
/// softmax(q k^T * scale) v over a cache, straight from its codes.
#pragma once

#include <kvtilt/attention/options.hpp>
#include <kvtilt/attention/tile.hpp>
#include <kvtilt/cache/input_check.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/page/layer_view.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt {

namespace detail {

inline Status check_attention(const LayerView& view, const TensorView& queries,
                              const OutputView& out, const AttendOptions& options) {
  const LayerShape& shape = view.shape;
  if (view.kernels == nullptr || shape.kv_heads == 0)
    return Status::error(ErrorCode::InvalidArgument, "the view is empty: it comes from no cache");
  if (queries.tokens < 0 || queries.dim != shape.key_dim || queries.heads <= 0 ||
      queries.heads % shape.kv_heads != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "queries are [%lld, %d, %d]; expected [n, a multiple of %d kv heads, %d]",
                         static_cast<long long>(queries.tokens), queries.heads, queries.dim,
                         shape.kv_heads, shape.key_dim);
  if (out.tokens != queries.tokens || out.heads != queries.heads || out.dim != shape.value_dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "the output is [%lld, %d, %d]; expected [%lld, %d, %d]",
                         static_cast<long long>(out.tokens), out.heads, out.dim,
                         static_cast<long long>(queries.tokens), queries.heads, shape.value_dim);
  if (queries.tokens > 0 && (queries.data == nullptr || out.data == nullptr))
    return Status::error(ErrorCode::InvalidArgument, "queries or output are null");
  const std::uint32_t scale_bits = bit_cast<std::uint32_t>(options.scale);
  if (scale_bits >= 0x7f800000u)  // negative, infinite or NaN
    return Status::error(ErrorCode::InvalidArgument,
                         "scale is %g, must be positive, or 0 for 1/sqrt(key_dim)",
                         static_cast<double>(options.scale));
  return {};
}

inline Status check_workspace(std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.size() < needed)
    return Status::error(ErrorCode::InvalidArgument, "the workspace has %zu bytes, %zu are needed",
                         workspace.size(), needed);
  return {};
}

/// A workspace may start anywhere; the carver wants page_alignment.
inline std::byte* align_workspace(std::byte* workspace) {
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  return workspace + (round_up(address, page_alignment) - address);
}

/// Runs every (kv head, tile of query rows): `add_pages(kv_head, tile)` feeds the pages. Query i
/// has position first_position + i.
template <class AddPages>
void attend_rows(const LayerView& view, const TensorView& queries, const OutputView& out,
                 const AttendOptions& options, std::int64_t first_position, AttentionTile& tile,
                 AddPages add_pages) {
  const int ratio = queries.heads / view.shape.kv_heads;
  const float scale = options.scale > 0.0f
                          ? options.scale
                          : 1.0f / std::sqrt(static_cast<float>(view.shape.key_dim));
  const std::int64_t rows = queries.tokens * ratio;
  for (int kv_head = 0; kv_head < view.shape.kv_heads; ++kv_head)
    for (std::int64_t start = 0; start < rows; start += tile_rows) {
      const int count = static_cast<int>(std::min<std::int64_t>(tile_rows, rows - start));
      tile.clear();
      for (int r = 0; r < count; ++r) {
        const std::int64_t token = (start + r) / ratio;
        const int head = kv_head * ratio + static_cast<int>((start + r) % ratio);
        float* query = tile.add_row(first_position + token, view.shape.window);
        for (int channel = 0; channel < queries.dim; ++channel)
          query[channel] = element(queries, token, head, channel) * (scale * log2_e);
      }
      add_pages(kv_head, tile);
      for (int r = 0; r < count; ++r) {
        const std::int64_t token = (start + r) / ratio;
        const int head = kv_head * ratio + static_cast<int>((start + r) % ratio);
        const float lse = tile.finish(r, out.row(token, head));
        if (out.lse != nullptr) out.lse[token * out.heads + head] = lse;
      }
    }
}

inline void add_cached_pages(const LayerView& view, int kv_head, AttentionTile& tile) {
  for (std::int32_t index = 0; index < view.page_count; ++index) {
    const PageEntry& page = view.pages[index];
    const HeadLayout& head = view.head(page.kind, kv_head);
    tile.add_page(head, page.data + head.offset, page.first_position, page.tokens);
  }
}

}  // namespace detail

/// Bytes attend() needs. Does not depend on the length of the sequence.
inline std::size_t attend_workspace_bytes(const LayerView& view) {
  detail::WorkspaceCarver measure(nullptr);
  const detail::AttentionTile tile(view.shape, view.max_page_tokens, view.kernels, measure);
  return measure.used() + page_alignment;
}

/// Attention of the newest tokens: append them first, then attend. Query i of n has position
/// length - n + i and sees every position up to its own, inside the layer's window.
///
/// queries    [n, query_heads, key_dim], n <= length; query_heads is a multiple of kv_heads, and
///            query head h reads kv head h / (query_heads / kv_heads)
/// out        [n, query_heads, value_dim], normalised; lse [n, query_heads] if wanted. A query
///            that sees nothing gives 0 and lse = -infinity
/// workspace  attend_workspace_bytes(view) bytes, any alignment
/// Error      against float64 on the stored values: (1e-5 + 8 * 2^-24 * max sum|q k| * scale)
///            times max|v|. A k or v much smaller than the widest of its quantization group counts
///            like that one: codes and minima are summed apart
/// Fails      InvalidArgument with the shapes; then nothing is written
/// Cost       every page once per kv head and 16 query rows; no allocation
inline Status attend(const LayerView& view, const TensorView& queries, const OutputView& out,
                     const AttendOptions& options, std::span<std::byte> workspace) {
  KVTILT_RETURN_IF_ERROR(detail::check_attention(view, queries, out, options));
  if (queries.tokens > view.length)
    return Status::error(
        ErrorCode::InvalidArgument, "%lld queries for %lld tokens: append the newest tokens first",
        static_cast<long long>(queries.tokens), static_cast<long long>(view.length));
  KVTILT_RETURN_IF_ERROR(detail::check_workspace(workspace, attend_workspace_bytes(view)));
  detail::WorkspaceCarver carver(detail::align_workspace(workspace.data()));
  detail::AttentionTile tile(view.shape, view.max_page_tokens, view.kernels, carver);
  detail::attend_rows(view, queries, out, options, view.length - queries.tokens, tile,
                      [&](int kv_head, detail::AttentionTile& rows) {
                        detail::add_cached_pages(view, kv_head, rows);
                      });
  return {};
}

}  // namespace kvtilt
