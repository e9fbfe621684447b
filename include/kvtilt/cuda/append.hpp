// SPDX-License-Identifier: MIT
/// Adds tokens to sequences of a device cache: a block takes one kv head of one sequence. It writes
/// sinks and tail, and seals its head's part of every page that the new tokens push out of the tail.
/// The last block of a sequence to finish makes the new state and table visible.
///
/// Nothing here depends on the host: lengths, tables and the numbers of new tokens are in device
/// memory, so a captured graph replays. The bytes do not depend on the order of blocks.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/input_rows.hpp>
#include <kvtilt/cuda/layer_storage.hpp>
#include <kvtilt/cuda/seal_head.hpp>
#include <kvtilt/cuda/sequence_state.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

struct AppendArguments {
  LayerStorage layer;
  Batch batch;  ///< no sequence twice
  /// Device memory, [rows, kv_heads, dim], any strides.
  TensorView keys;
  TensorView values;
  /// Device: rows of sequence i are indptr[i] to indptr[i + 1] - 1. Null: as many for each.
  const std::int32_t* indptr;
  int tokens_per_sequence;

  [[nodiscard]] KVTILT_HD std::int64_t first_row(int sequence) const {
    return indptr != nullptr ? indptr[sequence]
                             : static_cast<std::int64_t>(sequence) * tokens_per_sequence;
  }
  [[nodiscard]] KVTILT_HD std::int64_t tokens(int sequence) const {
    return indptr != nullptr ? indptr[sequence + 1] - indptr[sequence] : tokens_per_sequence;
  }
};

inline constexpr int append_threads = 128;

/// Dynamic shared memory of a block.
KVTILT_HD constexpr std::size_t append_shared_bytes(const LayerStorage& layer) {
  return static_cast<std::size_t>(layer.seal_bytes) + 16;
}
KVTILT_HD constexpr int append_blocks(const AppendArguments& arguments) {
  return arguments.batch.count * arguments.layer.kv_heads;
}

namespace detail {

/// One kv head of one sequence that tokens are added to.
struct AppendHead {
  int sequence;  ///< slot
  int head;
  std::int64_t first_row;  ///< of the new tokens
  SequenceState state;     ///< before
  PageSlot* table;
  AppendPlan plan;
};

/// Loads state and plan; false if there is nothing to do. All threads of all blocks of a sequence
/// agree.
template <class Threads>
KVTILT_HD bool plan_head(const Threads& threads, const AppendArguments& arguments, int index,
                         int head, AppendHead& work) {
  const LayerStorage& layer = arguments.layer;
  work.sequence = arguments.batch.slots[index];
  work.head = head;
  work.first_row = arguments.first_row(index);
  work.state = layer.states[work.sequence];
  work.table = layer.table(work.sequence);
  const std::int64_t tokens = arguments.tokens(index);
  if (tokens <= 0) return false;
  work.plan = plan_append(layer.placement(), work.state, work.table, tokens);
  if (work.plan.fits) return true;
  if (head == 0 && threads.thread() == 0)
    record_error(threads, layer, ErrorCode::OutOfCapacity, {work.sequence, 0, 0, work.state.length},
                 0.0f);
  return false;
}

/// Writes new tokens, the `first`-th to first + count - 1, to the slots from `slot` on of a 16-bit
/// head block.
template <class Threads>
KVTILT_HD void write_tokens(const Threads& threads, const AppendArguments& arguments,
                            const AppendHead& work, const HeadLayout& half, std::byte* keys,
                            std::byte* values, std::int64_t first, int slot, int count) {
  const LayerStorage& layer = arguments.layer;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, work.head);
  const InputPlace place{work.sequence, work.head, 0, work.plan.length + first};
  write_input(threads, layer, Role::Keys, arguments.keys, work.first_row + first,
              largest_magnitude(sealed.key.format), place, half.key.matrix, slot, count, keys);
  write_input(threads, layer, Role::Values, arguments.values, work.first_row + first,
              largest_magnitude(sealed.value.format), place, half.value.matrix, slot, count,
              values);
}

/// Which of the new tokens a 16-bit block holds.
struct NewTokens {
  std::int64_t first;
  int slot;
  int count;
};

/// Of a block whose `slots` slots begin at position `start`.
KVTILT_HD constexpr NewTokens new_tokens_in(const AppendPlan& plan, std::int64_t start, int slots) {
  const std::int64_t from = plan.length > start ? plan.length : start;
  const std::int64_t end = plan.length + plan.tokens;
  const std::int64_t until = end < start + slots ? end : start + slots;
  return {from - plan.length, static_cast<int>(from - start),
          until > from ? static_cast<int>(until - from) : 0};
}

/// Blocks of the tail with new tokens, or that are sealed: numbered from where the tail starts.
struct TailBlocks {
  std::int64_t first;
  std::int64_t last;  ///< one past
};

KVTILT_HD constexpr TailBlocks tail_blocks(const AppendPlan& plan, int page_tokens) {
  const std::int64_t in_tail = plan.length + plan.tokens - plan.tail_start;
  const std::int64_t before = plan.length - plan.tail_start;
  return {plan.seals > 0 || before < 0 ? 0 : before / page_tokens,
          in_tail <= 0 ? 0 : (in_tail + page_tokens - 1) / page_tokens};
}

/// The page of the pool that page `index` is sealed into, at the head's block.
KVTILT_HD inline std::byte* sealed_block(const LayerStorage& layer, const AppendHead& work,
                                         std::int32_t index) {
  const std::int32_t page = page_for(work.plan, work.state, work.table, index - work.plan.skipped);
  return layer.block(PageKind::Sealed, page) + layer.head(PageKind::Sealed, work.head).offset;
}

/// The 16-bit blocks that get new tokens, one after the other: the sinks, then those of the tail,
/// except for `elsewhere`.
template <class Threads>
KVTILT_HD void append_head(const Threads& threads, const AppendArguments& arguments,
                           const AppendHead& work, TailBlocks elsewhere) {
  const LayerStorage& layer = arguments.layer;
  const AppendPlan& plan = work.plan;
  const TailBlocks blocks = tail_blocks(plan, layer.page_tokens);
  const bool to_sinks = plan.length < layer.sink_tokens;
  KVTILT_DEVICE_LOOP
  for (std::int64_t index = to_sinks ? -1 : blocks.first; index < blocks.last; ++index) {
    if (index >= elsewhere.first && index < elsewhere.last) {
      index = elsewhere.last - 1;
      continue;
    }
    const bool sinks = index < 0;
    const HeadLayout& half = layer.head(sinks ? PageKind::Sinks : PageKind::Tail, work.head);
    std::byte* block =
        half.offset + (sinks ? layer.sinks(work.sequence)
                             : layer.tail(work.sequence, work.state.ring_head,
                                          static_cast<int>(index % layer.ring_blocks)));
    const NewTokens added =
        sinks ? new_tokens_in(plan, 0, layer.sink_tokens)
              : new_tokens_in(plan, plan.tail_start + index * layer.page_tokens, layer.page_tokens);
    if (added.count > 0)
      write_tokens(threads, arguments, work, half, block + half.key.codes, block + half.value.codes,
                   added.first, added.slot, added.count);
    if (sinks || index >= plan.seals) continue;
    threads.sync();
    if (index < plan.skipped) continue;
    seal_head(threads, block + half.key.codes, block + half.value.codes,
              layer.head(PageKind::Sealed, work.head),
              sealed_block(layer, work, static_cast<std::int32_t>(index)), threads.shared() + 16);
    threads.sync();
  }
}

/// The last block of a sequence makes the rest visible.
template <class Threads>
KVTILT_HD void arrive(const Threads& threads, const AppendArguments& arguments, AppendHead& work,
                      std::uint32_t expected) {
  const LayerStorage& layer = arguments.layer;
  std::uint32_t* arrivals = layer.arrivals + work.sequence;
  std::uint32_t* last = reinterpret_cast<std::uint32_t*>(threads.shared());
  threads.sync();
  if (threads.thread() == 0) {
    threads.fence();
    *last = threads.atomic_add(arrivals, 1) + 1 == expected ? 1 : 0;
    threads.fence();
    if (*last != 0) *arrivals = 0;
  }
  threads.sync();
  if (*last == 0) return;
  finish_append(threads, layer.placement(), work.plan, layer.ring_blocks, work.state, work.table);
  if (threads.thread() == 0) layer.states[work.sequence] = work.state;
}

}  // namespace detail

/// Body of the kernel: append_blocks() blocks of append_threads threads, append_shared_bytes().
template <class Threads>
KVTILT_HD void append(const Threads& threads, const AppendArguments& arguments) {
  const int heads = arguments.layer.kv_heads;
  const int index = threads.block() / heads;
  detail::AppendHead work;
  if (!detail::plan_head(threads, arguments, index, threads.block() - index * heads, work)) return;
  detail::append_head(threads, arguments, work, {0, 0});
  detail::arrive(threads, arguments, work, static_cast<std::uint32_t>(heads));
}

}  // namespace kvtilt::cuda
