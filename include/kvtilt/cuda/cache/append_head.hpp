// SPDX-License-Identifier: MIT
/// Appends to one kv head of one sequence, by one block: it writes sinks and tail, and tells which
/// pages are to be sealed. The last block of a sequence to arrive changes its state.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/input_rows.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/quant/format.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

struct AppendArguments {
  LayerView layer;
  Batch batch;  ///< no sequence twice
  /// Device memory, [rows, kv_heads, dim], channels contiguous.
  TensorView keys;
  TensorView values;
  BatchRows rows;
};

namespace detail {

KVTILT_HD inline int count_bits(std::uint32_t mask) {
#if defined(__CUDA_ARCH__)
  return __popc(mask);
#else
  return std::popcount(mask);
#endif
}

template <class Threads>
KVTILT_HD bool rows_are_sound(const Threads& threads, const AppendArguments& arguments) {
  return kvtilt::cuda::rows_are_sound(threads, arguments.layer, arguments.batch, arguments.rows,
                                      arguments.keys.tokens, DeviceFault::BadAppendRows);
}

/// One kv head of one sequence that gets tokens.
struct AppendHead {
  int sequence;  ///< slot
  int head;
  std::int64_t first_row;  ///< of the new tokens
  SequenceState state;     ///< before the append
  PageSlot* table;
  AppendPlan plan;
};

/// What the threads of a block share; their registers are needed for the search for scales.
struct alignas(16) AppendShared {
  AppendArguments arguments;  ///< a copy: the kernel's constants would all be kept in registers
  AppendHead work;
  InputTask input[2];  ///< keys and values being written
  bool works;
  bool last;  ///< whether this is the last of the sequence's blocks to arrive
};

/// Bytes of shared memory that appending to one head takes.
KVTILT_HD constexpr std::size_t head_shared_bytes(const LayerView& layer) {
  return sizeof(AppendShared) + static_cast<std::size_t>(layer.seal_bytes);
}

/// Copies the arguments to shared memory; threads may read them after the next sync().
template <class Threads>
KVTILT_HD AppendShared& share_arguments(const Threads& threads, const AppendArguments& constants) {
  AppendShared& shared = *reinterpret_cast<AppendShared*>(threads.shared());
  constexpr int words = sizeof(AppendArguments) / 4;
  for (int i = threads.thread(); i < words; i += threads.thread_count())
    reinterpret_cast<Word*>(&shared.arguments)[i] = reinterpret_cast<const Word*>(&constants)[i];
  return shared;
}

/// Loads the state and plans the append. Returns false, in all blocks of a sequence alike, if there
/// is nothing to do. `reports`: whether this block records that tokens do not fit.
template <class Threads>
KVTILT_HD bool plan_head(const Threads& threads, const AppendArguments& constants, int index,
                         int head, bool reports) {
  AppendShared& shared = share_arguments(threads, constants);
  threads.sync();
  const AppendArguments& arguments = shared.arguments;
  const LayerView& layer = arguments.layer;
  if (threads.thread() == 0) {
    AppendHead& work = shared.work;
    work.sequence = arguments.batch.slots[index];
    work.head = head;
    work.first_row = arguments.rows.first(index);
    work.state = layer.state(work.sequence);
    work.table = layer.table(work.sequence);
    const std::int64_t tokens = work.sequence < 0 ? 0 : arguments.rows.count(index);
    if (tokens > 0) work.plan = plan_append(layer.placement(), work.state, work.table, tokens);
    shared.works = tokens > 0 && work.plan.fits;
    if (reports && tokens > 0 && !work.plan.fits)
      record_error(
          threads, layer.records,
          sequence_fault(DeviceFault::NoPageLeft, layer.layer, work.sequence, work.state.length));
  }
  threads.sync();
  return shared.works;
}

/// New tokens `first` to first + count - 1 of an append, in slots `slot` on of a 16-bit block.
struct NewTokens {
  std::int64_t first;
  int slot;
  int count;
};

/// The new tokens that go to a block of `slots` slots whose slot 0 has position `start`.
KVTILT_HD constexpr NewTokens new_tokens_in(const AppendPlan& plan, std::int64_t start, int slots) {
  const std::int64_t from = plan.length > start ? plan.length : start;
  const std::int64_t end = plan.length + plan.tokens;
  const std::int64_t until = end < start + slots ? end : start + slots;
  return {from - plan.length, static_cast<int>(from - start),
          until > from ? static_cast<int>(until - from) : 0};
}

/// The tail blocks with new tokens, or that are sealed, numbered from the tail's old start. One
/// append has fewer than 2^31 tokens.
struct TailBlocks {
  std::int32_t first;
  std::int32_t last;  ///< one past the last
};

KVTILT_HD constexpr TailBlocks tail_blocks(const AppendPlan& plan, int page_tokens) {
  const std::int64_t in_tail = plan.length + plan.tokens - plan.tail_start;
  const std::int64_t before = plan.length - plan.tail_start;
  return {plan.seals > 0 || before < 0 ? 0 : static_cast<std::int32_t>(before / page_tokens),
          in_tail <= 0 ? 0 : static_cast<std::int32_t>((in_tail + page_tokens - 1) / page_tokens)};
}

/// Where tail block `index` of the head is sealed to, in its page of the pool.
KVTILT_HD inline std::byte* sealed_block(const LayerView& layer, const AppendHead& work,
                                         std::int32_t index) {
  const std::int32_t page = page_for(work.plan, work.state, work.table, index - work.plan.skipped);
  return layer.block(PageKind::Sealed, page) + layer.head(PageKind::Sealed, work.head).offset;
}

/// Where one head's 16-bit keys and values are in a block.
struct HalfBlock {
  std::byte* keys;
  std::byte* values;
};

/// Writes new tokens to the slots of a 16-bit block.
template <class Threads>
KVTILT_HD void write_tokens(const Threads& threads, const AppendArguments& arguments,
                            const AppendHead& work, const HeadLayout& half, HalfBlock to,
                            const NewTokens& added) {
  const LayerView& layer = arguments.layer;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, work.head);
  AppendShared& shared = *reinterpret_cast<AppendShared*>(threads.shared());
  threads.sync();
  if (threads.warp() < 2 && threads.lane() == 0) {
    const bool keys = threads.warp() == 0;
    shared.input[threads.warp()] = {
        keys ? Role::Keys : Role::Values,
        keys ? arguments.keys : arguments.values,
        work.first_row + added.first,
        largest_magnitude(keys ? sealed.key.format : sealed.value.format),
        {work.sequence, work.head, keys ? 0 : layer.key_dim, work.plan.length + added.first},
        keys ? half.key.matrix : half.value.matrix,
        keys ? to.keys : to.values,
        added.slot,
        added.count};
  }
  threads.sync();
  KVTILT_DEVICE_LOOP
  for (int tensor = 0; tensor < (layer.values_in_keys != 0 ? 1 : 2); ++tensor)
    write_input(threads, layer, shared.input[tensor]);
}

/// A head's part of a page to seal: its 16-bit keys and values, and where the codes go.
struct SealJob {
  const std::byte* keys;
  const std::byte* values;
  std::byte* block;  ///< the head's block in the page
};

/// The head's layout in tail block `index`; -1: the sinks.
KVTILT_HD inline const HeadLayout& half_layout(const LayerView& layer, const AppendHead& work,
                                               std::int32_t index) {
  return layer.head(index < 0 ? PageKind::Sinks : PageKind::Tail, work.head);
}

/// Where the head's keys and values are in that block.
KVTILT_HD inline HalfBlock half_block(const LayerView& layer, const AppendHead& work,
                                      std::int32_t index) {
  std::byte* block =
      index < 0 ? layer.sinks(work.sequence)
                : layer.tail(work.sequence, work.state.ring_head, index % layer.ring_blocks);
  const HeadLayout& half = half_layout(layer, work, index);
  block += half.offset;
  return {block + half.key.codes, block + half.value.codes};
}

/// The new tokens of that block.
KVTILT_HD constexpr NewTokens new_tokens_of(const AppendPlan& plan, const LayerView& layer,
                                            std::int32_t index) {
  if (index < 0) return new_tokens_in(plan, 0, layer.sink_tokens);
  return new_tokens_in(plan, plan.tail_start + std::int64_t{index} * layer.page_tokens,
                       layer.page_tokens);
}

/// Whether tail block `index` leaves the tail for a page that the window keeps.
KVTILT_HD constexpr bool is_sealed(const AppendPlan& plan, std::int32_t index) {
  return index >= plan.skipped && index < plan.seals;
}

/// Writes the new tokens of tail block `index`; -1: the sinks. Returns whether the block is to be
/// sealed; then all threads see its tokens, and `job` is set.
template <class Threads>
KVTILT_HD bool fill_block(const Threads& threads, const AppendArguments& arguments,
                          const AppendHead& work, std::int32_t index, SealJob& job) {
  const LayerView& layer = arguments.layer;
  const HalfBlock to = half_block(layer, work, index);
  const NewTokens added = new_tokens_of(work.plan, layer, index);
  if (added.count > 0)
    write_tokens(threads, arguments, work, half_layout(layer, work, index), to, added);
  if (!is_sealed(work.plan, index)) return false;
  threads.sync();
  job = {to.keys, to.values, sealed_block(layer, work, index)};
  return true;
}

/// Counts this block at a sequence's counter; returns how many came before. One thread calls it.
/// The last block to arrive may then change the states and tables that this one has read.
template <class Threads>
KVTILT_HD std::uint32_t arrive(const Threads& threads, const LayerView& layer, int sequence) {
  return threads.atomic_count_release(layer.arrivals + sequence);
}

/// All blocks that append writes or seals for a head: -1 (the sinks), then tail blocks.
KVTILT_HD constexpr TailBlocks all_blocks(const AppendPlan& plan, const LayerView& layer) {
  const TailBlocks tail = tail_blocks(plan, layer.page_tokens);
  return {plan.length < layer.sink_tokens ? -1 : tail.first, tail.last};
}

}  // namespace detail

}  // namespace kvtilt::cuda
