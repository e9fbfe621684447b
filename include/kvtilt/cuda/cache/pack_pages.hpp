// SPDX-License-Identifier: MIT
/// Seals rows straight into pages of an engine's own pool, with the bytes that append would have
/// sealed; page_tables.hpp shows them to attention. One block per kv head of each page.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/cache/pack.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Where pack_pages() finds the pages of 16-bit or float rows that it quantizes: page i of a source
/// begins i strides behind the first element of a view. By default pages follow one another and are
/// taken in order.
struct SourcePages {
  std::int64_t key_stride = 0;          ///< elements from a page to the next; 0: page_tokens rows
  std::int64_t value_stride = 0;        ///< likewise
  const std::int32_t* index = nullptr;  ///< device, [pages]: pages of the source; null: 0, 1, ...
  std::int32_t count = 0;               ///< pages of the source, if there is an index
};

struct PackPagesArguments {
  /// A layer whose sealed pool is the engine's; keys and values [pages * page_tokens, kv_heads,
  /// dim], rows of a page as the strides say. `batch` and `rows` are not read.
  AppendArguments append;
  SourcePages source;         ///< strides not 0
  const std::int32_t* pages;  ///< device, [pages]: index in the pool; below 0: skipped
  std::int32_t pool_pages;
};

namespace detail {

/// Moves a view by whole elements.
KVTILT_HD inline void advance(TensorView& rows, std::int64_t elements) {
  rows.data = static_cast<const std::byte*>(rows.data) +
              elements * static_cast<std::int64_t>(element_bytes(rows.type));
}

/// Fills in the strides of pages that follow one another. InvalidArgument if they then overlap, or if
/// an index has no pages to choose from.
inline Status complete_source(PackPagesArguments& arguments) {
  SourcePages& source = arguments.source;
  if (source.index != nullptr && source.count < 1)
    return Status::error(ErrorCode::InvalidArgument, "a source with an index has %d pages",
                         source.count);
  const int page_tokens = arguments.append.layer.page_tokens;
  const auto complete = [&](const TensorView& rows, std::int64_t& stride) -> Status {
    if (stride != 0) return {};
    stride = rows.token_stride * page_tokens;
    const std::int64_t tokens =
        source.index == nullptr ? rows.tokens : std::int64_t{source.count} * page_tokens;
    if (rows.heads == 1 || rows.head_stride < stride ||
        rows.head_stride >= rows.token_stride * tokens)
      return {};
    return Status::error(
        ErrorCode::InvalidArgument,
        "rows %lld apart, heads %lld apart, %lld rows: if the heads of a page follow "
        "one another, SourcePages says how far apart pages are",
        static_cast<long long>(rows.token_stride), static_cast<long long>(rows.head_stride),
        static_cast<long long>(tokens));
  };
  KVTILT_RETURN_IF_ERROR(complete(arguments.append.keys, source.key_stride));
  return complete(arguments.append.values, source.value_stride);
}

}  // namespace detail

/// Body of the kernel: kv_heads blocks of pack_threads threads for each page, pack_shared_bytes().
/// A page outside the pool or the source is skipped, and recorded. Elements that the recipe cannot hold
/// are repaired and recorded as in append, with the page in place of a slot and the row in place of a
/// position.
template <FitRules Rules, class Threads>
KVTILT_HD void pack_pages(const Threads& threads, const PackPagesArguments& constants) {
  const unsigned heads = static_cast<unsigned>(constants.append.layer.kv_heads);
  const int index = static_cast<int>(static_cast<unsigned>(threads.block()) / heads);
  const int head = threads.block() - index * constants.append.layer.kv_heads;
  const std::int64_t first_row = std::int64_t{index} * constants.append.layer.page_tokens;
  const std::int32_t page = constants.pages[index];
  if (page < 0) return;
  const bool in_order = constants.source.index == nullptr;
  const std::int32_t from = in_order ? index : constants.source.index[index];
  const bool known = in_order || (from >= 0 && from < constants.source.count);
  if (page >= constants.pool_pages || !known) {
    if (threads.thread() != 0 || head != 0) return;
    record_error(threads, constants.append.layer.records,
                 sequence_fault(DeviceFault::PageOutsidePool, constants.append.layer.layer,
                                known ? page : from, first_row));
    return;
  }
  detail::AppendShared& shared = detail::share_arguments(threads, constants.append);
  auto& pack = *reinterpret_cast<detail::PackShared*>(threads.shared());
  threads.sync();
  const LayerView& layer = shared.arguments.layer;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, head);
  if (threads.thread() == 0) {
    shared.work = {page, head, 0, {}, nullptr, {}};
    shared.work.plan.length = first_row;
    detail::advance(shared.arguments.keys, from * constants.source.key_stride);
    detail::advance(shared.arguments.values, from * constants.source.value_stride);
    pack.block = layer.block(PageKind::Sealed, page) + sealed.offset;
  }
  threads.sync();
  const bool straight = detail::stays_half(sealed);
  const detail::HalfBlock to = detail::page_rows(threads, pack, sealed, straight);
  detail::write_tokens(threads, shared.arguments, shared.work, layer.head(PageKind::Tail, head), to,
                       {0, 0, layer.page_tokens});
  if (straight) return;
  seal_head<Rules>(threads, to.keys, to.values, sealed, pack.block,
                   threads.shared() + sizeof(detail::PackShared));
}

}  // namespace kvtilt::cuda
