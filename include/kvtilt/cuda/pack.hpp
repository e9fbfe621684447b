// SPDX-License-Identifier: MIT
/// Appends prompts: what append does, byte for byte, in parallel. Pages whose tokens are all new are
/// sealed by blocks of their own, from rows to page in one pass through shared memory; one more block
/// per kv head does what append does with the rest.
#pragma once

#include <kvtilt/cuda/append.hpp>
#include <kvtilt/cuda/input_rows.hpp>
#include <kvtilt/cuda/seal_head.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

inline constexpr int pack_threads = 128;

/// Dynamic shared memory of a block; where it is more than the device has, append has to do.
KVTILT_HD constexpr std::size_t pack_shared_bytes(const LayerStorage& layer) {
  return append_shared_bytes(layer) +
         static_cast<std::size_t>(layer.page_tokens) *
             static_cast<std::size_t>(layer.key_dim + layer.value_dim) * sizeof(F16);
}

/// Blocks for each kv head of a sequence that gets at most `most_tokens` tokens.
KVTILT_HD constexpr int pack_units(const LayerStorage& layer, std::int64_t most_tokens) {
  return 1 + static_cast<int>((most_tokens + layer.page_tokens - 1) / layer.page_tokens);
}

namespace detail {

/// Pages of new tokens alone that are kept: numbered from where the tail starts.
KVTILT_HD constexpr TailBlocks new_pages(const AppendPlan& plan, int page_tokens) {
  const std::int64_t before = plan.length - plan.tail_start;
  std::int64_t first = before <= 0 ? 0 : (before + page_tokens - 1) / page_tokens;
  if (first > plan.seals) first = plan.seals;
  return {first, plan.seals};
}

/// Rows to a page.
template <class Threads>
KVTILT_HD void pack_page(const Threads& threads, const AppendArguments& arguments,
                         const AppendHead& work, std::int64_t index) {
  const LayerStorage& layer = arguments.layer;
  const HeadLayout& half = layer.head(PageKind::Tail, work.head);
  const HeadLayout& sealed = layer.head(PageKind::Sealed, work.head);
  const std::int64_t first = work.plan.tail_start + index * layer.page_tokens - work.plan.length;
  std::byte* const staged = threads.shared() + append_shared_bytes(layer);
  std::byte* const values = staged + code_bytes(half.key.matrix, half_bits);
  const InputPlace place{work.sequence, work.head, 0, work.plan.length + first};
  stage_input(threads, layer, Role::Keys, arguments.keys, work.first_row + first,
              largest_magnitude(sealed.key.format), place, half.key.matrix, staged);
  stage_input(threads, layer, Role::Values, arguments.values, work.first_row + first,
              largest_magnitude(sealed.value.format), place, half.value.matrix, values);
  threads.sync();
  seal_head(threads, staged, values, sealed,
            sealed_block(layer, work, static_cast<std::int32_t>(index)), threads.shared() + 16);
}

}  // namespace detail

/// Body of the kernel: batch.count * pack_units() * kv_heads blocks of pack_threads threads,
/// pack_shared_bytes(). No sequence may get more tokens than `units` was computed for.
template <class Threads>
KVTILT_HD void pack(const Threads& threads, const AppendArguments& arguments, int units) {
  const int heads = arguments.layer.kv_heads;
  const int unit_index = threads.block() / heads;
  const int head = threads.block() - unit_index * heads;
  const int index = unit_index / units;
  const int unit = unit_index - index * units;
  detail::AppendHead work;
  if (!detail::plan_head(threads, arguments, index, unit == 0 ? head : -1, work)) return;
  work.head = head;
  const detail::TailBlocks pages = detail::new_pages(work.plan, arguments.layer.page_tokens);
  const std::int64_t first = pages.first < work.plan.skipped ? work.plan.skipped : pages.first;
  if (unit == 0) {
    detail::append_head(threads, arguments, work, pages);
  } else {
    if (first + unit - 1 >= pages.last) return;
    detail::pack_page(threads, arguments, work, first + unit - 1);
  }
  const std::int64_t packed = pages.last > first ? pages.last - first : 0;
  detail::arrive(threads, arguments, work, static_cast<std::uint32_t>((packed + 1) * heads));
}

}  // namespace kvtilt::cuda
