// SPDX-License-Identifier: MIT
/// Seals rows straight into pages of an engine's own pool, with the bytes that append would have
/// sealed; page_tables.hpp shows them to attention. One block per kv head of each page.
#pragma once

#include <kvtilt/cuda/cache/pack.hpp>

#include <cstdint>

namespace kvtilt::cuda {

struct PackPagesArguments {
  /// A layer whose sealed pool is the engine's; keys and values [pages * page_tokens, kv_heads,
  /// dim]. `batch` and `rows` are not read.
  AppendArguments append;
  const std::int32_t* pages;  ///< device, [pages]: index in the pool; below 0: skipped
  std::int32_t pool_pages;
};

/// Body of the kernel: kv_heads blocks of pack_threads threads for each page, pack_shared_bytes().
/// A page outside the pool is skipped, and recorded. Elements that the recipe cannot hold are
/// repaired and recorded as in append, with the page in place of a slot and the row in place of a
/// position.
template <FitRules Rules, class Threads>
KVTILT_HD void pack_pages(const Threads& threads, const PackPagesArguments& constants) {
  const unsigned heads = static_cast<unsigned>(constants.append.layer.kv_heads);
  const int index = static_cast<int>(static_cast<unsigned>(threads.block()) / heads);
  const int head = threads.block() - index * constants.append.layer.kv_heads;
  const std::int64_t first_row = std::int64_t{index} * constants.append.layer.page_tokens;
  const std::int32_t page = constants.pages[index];
  if (page < 0) return;
  if (page >= constants.pool_pages) {
    if (threads.thread() != 0 || head != 0) return;
    record_error(threads, constants.append.layer.records,
                 sequence_fault(DeviceFault::PageOutsidePool, constants.append.layer.layer, page,
                                first_row));
    return;
  }
  detail::AppendShared& shared = detail::share_arguments(threads, constants.append);
  auto& pack = *reinterpret_cast<detail::PackShared*>(threads.shared());
  threads.sync();
  const LayerView& layer = shared.arguments.layer;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, head);
  if (threads.thread() == 0) {
    shared.work = {page, head, first_row, {}, nullptr, {}};
    shared.work.plan.length = first_row;
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
