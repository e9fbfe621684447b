// SPDX-License-Identifier: MIT
/// Reads tokens back out of a cache: for export, other attention kernels, or to measure the error.
#pragma once

#include <kvtilt/core/row_check.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace kvtilt {

namespace detail {

/// The page that holds a position; if none does, the first one behind it.
inline const PageEntry* page_at(const LayerView& view, std::int64_t position) {
  return std::partition_point(view.pages, view.pages + view.page_count, [&](const PageEntry& page) {
    return page.first_position + page.tokens <= position;
  });
}

inline Status check_unpack(const LayerView& view, std::int64_t first, const TensorView& keys,
                           const TensorView& values, int layer) {
  const LayerShape& shape = view.shape;
  if (view.kernels == nullptr || shape.kv_heads == 0)
    return Status::error(ErrorCode::InvalidArgument, "the view is empty: it comes from no cache");
  Result<std::int64_t> wanted = check_wanted_rows(shape, keys, values, layer);
  if (!wanted) return std::move(wanted).take_status();
  const std::int64_t tokens = *wanted;
  if (first < 0 || first > view.length || tokens > view.length - first)
    return Status::error(ErrorCode::InvalidArgument,
                         "%scannot unpack %lld tokens from position %lld on: there are %lld",
                         LayerName(layer).text, static_cast<long long>(tokens),
                         static_cast<long long>(first), static_cast<long long>(view.length));
  const std::int64_t last = first + tokens;
  const PageEntry* const end = view.pages + view.page_count;
  std::int64_t next = first;
  for (const PageEntry* page = page_at(view, first);
       next < last && page != end && page->first_position <= next; ++page)
    next = page->first_position + page->tokens;
  if (next < last)
    return Status::error(
        ErrorCode::InvalidArgument, "%scannot unpack positions %lld to %lld: %s position %lld",
        LayerName(layer).text, static_cast<long long>(first), static_cast<long long>(last) - 1,
        next < view.first_kept ? "the window has freed" : "no page holds",
        static_cast<long long>(next));
  return {};
}

/// unpack() without checks: check_unpack() must have succeeded.
inline void unpack_checked(const LayerView& view, std::int64_t first, const MutableTensorView& keys,
                           const MutableTensorView& values) {
  const std::int64_t tokens = std::max(keys.tokens, values.tokens);
  const PageEntry* page = page_at(view, first);
  for (std::int64_t token = 0; token < tokens; ++page) {
    const int slot = static_cast<int>(first + token - page->first_position);
    const int count = static_cast<int>(std::min<std::int64_t>(page->tokens - slot, tokens - token));
    for (int index = 0; index < view.shape.kv_heads; ++index) {
      const HeadLayout& head = view.head(page->kind, index);
      const std::byte* block = page->data + head.offset;
      const cpu::RowRange rows{token, count, index};
      if (is_wanted(keys)) view.kernels->unpack(Role::Keys, head.key, block, slot, keys, rows);
      if (!is_wanted(values)) continue;
      const bool in_keys = head.values_in_keys();
      view.kernels->unpack(in_keys ? Role::Keys : Role::Values, in_keys ? head.key : head.value,
                           block, slot, values, rows);
    }
    token += count;
  }
}

}  // namespace detail

/// Copies the tokens at positions `first` to first + n - 1 out of one layer, as attention sees them.
///
/// keys    receives [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; {}: skipped
/// values  receives [n, kv_heads, value_dim], likewise
/// Error   f32 has the bits of minimum + scale * code, or of the fp16 value; f16 and bf16 are rounded
///         from that to nearest even. A code may decode to up to 2^-10 of its group's range beyond the
///         appended values; if that exceeds 65504, f16 becomes infinity
/// Fails   InvalidArgument (shapes; positions that were never appended, were removed, or were freed
///         by a window); nothing is written then
/// Cost    one to three and a half times that of writing the rows, as codes are decoded; no
///         allocation, 32 KiB of stack. Any number of threads may read a sequence while no call
///         changes it
inline Status unpack(const LayerView& view, std::int64_t first, const MutableTensorView& keys,
                     const MutableTensorView& values) {
  KVTILT_RETURN_IF_ERROR(detail::check_unpack(view, first, keys, values, unnumbered_layer));
  detail::unpack_checked(view, first, keys, values);
  return {};
}

}  // namespace kvtilt
