// SPDX-License-Identifier: MIT
/// Appends prompts: what append does, byte for byte, in parallel. Pages whose tokens are all new are
/// sealed by blocks of their own, from rows to page in one pass through shared memory; one more block
/// per kv head does what append does with the rest.
#pragma once

#include <kvtilt/cuda/cache/append_head.hpp>
#include <kvtilt/cuda/cache/input_rows.hpp>
#include <kvtilt/cuda/page/seal_head.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

inline constexpr int pack_threads = 128;

/// Dynamic shared memory of a block; where it is more than the device has, append has to do.
KVTILT_HD constexpr std::size_t pack_shared_bytes(const LayerStorage& layer) {
  return detail::head_shared_bytes(layer) +
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
  const std::int64_t first = before <= 0 ? 0 : (before + page_tokens - 1) / page_tokens;
  return {first > plan.seals ? plan.seals : static_cast<std::int32_t>(first), plan.seals};
}

template <class Threads>
KVTILT_HD void seal(const Threads& threads, const HeadLayout& packed, const SealJob& job) {
  seal_head(threads, job.keys, job.values, packed, job.block,
            threads.shared() + sizeof(AppendShared));
  threads.sync();
}

/// The 16-bit blocks `first` to last - 1 of the tail, -1 being the sinks, except for `elsewhere`:
/// each gets its new tokens, and is sealed if it leaves the tail. Staged, a block is not in the tail
/// but in shared memory: all of its tokens are new, and it is sealed.
template <class Threads>
KVTILT_HD void fill_blocks(const Threads& threads, const AppendArguments& arguments,
                           const AppendHead& work, TailBlocks range, TailBlocks elsewhere,
                           std::byte* staged) {
  KVTILT_DEVICE_LOOP
  for (std::int32_t index = range.first; index < range.last; ++index) {
    if (index >= elsewhere.first && index < elsewhere.last) {
      index = elsewhere.last - 1;
      continue;
    }
    SealJob job;
    if (fill_block(threads, arguments, work, index, staged, job))
      seal(threads, arguments.layer.head(PageKind::Sealed, work.head), job);
  }
}

}  // namespace detail

KVTILT_HD constexpr int pack_blocks(const AppendArguments& arguments, int units) {
  return arguments.batch.count * arguments.layer.kv_heads * units;
}

/// Body of the kernel: pack_blocks() blocks of pack_threads threads,
/// pack_shared_bytes(). No sequence may get more tokens than `units` was computed for.
template <class Threads>
KVTILT_HD void pack(const Threads& threads, const AppendArguments& arguments, int units) {
  const int heads = arguments.layer.kv_heads;
  // Unsigned divisions are shorter.
  const unsigned block = static_cast<unsigned>(threads.block());
  const int unit_index = static_cast<int>(block / static_cast<unsigned>(heads));
  const int head = threads.block() - unit_index * heads;
  const int index =
      static_cast<int>(static_cast<unsigned>(unit_index) / static_cast<unsigned>(units));
  const int unit = unit_index - index * units;
  if (!detail::plan_head(threads, arguments, index, head, unit == 0 && head == 0)) return;
  const auto& shared = *reinterpret_cast<const detail::AppendShared*>(threads.shared());
  const detail::AppendHead& work = shared.work;
  const detail::TailBlocks pages = detail::new_pages(work.plan, shared.arguments.layer.page_tokens);
  const std::int32_t first = pages.first < work.plan.skipped ? work.plan.skipped : pages.first;
  const bool page = unit > 0;
  const std::int32_t own = first + unit - 1;
  const bool idle = page && own >= pages.last;
  if (!idle)
    detail::fill_blocks(
        threads, shared.arguments, work,
        page ? detail::TailBlocks{own, own + 1}
             : detail::all_blocks(work.plan, shared.arguments.layer),
        page ? detail::TailBlocks{0, 0} : pages,
        page ? threads.shared() + detail::head_shared_bytes(arguments.layer) : nullptr);
  // Idle blocks arrive too: one that starts late must not find the state that comes after.
  detail::arrive(threads, shared.arguments, static_cast<std::uint32_t>(units * heads));
}

}  // namespace kvtilt::cuda
