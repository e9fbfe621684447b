// SPDX-License-Identifier: MIT
/// Appends prompts: the bytes of append(), in parallel. Pages that hold only new tokens are sealed
/// by blocks of their own, from rows to page in one pass through shared memory. The first blocks of
/// a sequence divide all else that is written or sealed.
///
/// A unit is a group of kv_heads blocks, one for each kv head, that seals at most one such page.
/// Only the device knows where a sequence's rows start, so a launch has units for any split of its
/// rows among sequences, and a captured graph replays.
#pragma once

#include <kvtilt/cuda/cache/append_head.hpp>
#include <kvtilt/cuda/cache/input_rows.hpp>
#include <kvtilt/cuda/page/seal_head.hpp>
#include <kvtilt/cuda/page/seal_slice.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

inline constexpr int pack_threads = 128;

/// Blocks of a launch: one per kv head and unit. Units: one for each sequence and one for each page
/// that the rows could fill. Can be more than a launch takes.
KVTILT_HD constexpr std::int64_t pack_blocks(const AppendArguments& arguments) {
  return (arguments.batch.count + arguments.keys.tokens / arguments.layer.page_tokens) *
         arguments.layer.kv_heads;
}

namespace detail {

/// Which units belong to a sequence: the start of its rows alone tells, without sums. They are at
/// least one for each page that its tokens could fill, and one more, as floor(a + b) >= floor(a) +
/// floor(b).
class PackUnits {
 public:
  KVTILT_HD explicit PackUnits(const AppendArguments& arguments)
      : rows_(arguments.rows), shift_(bits_below(arguments.layer.page_tokens)) {}

  /// The first unit of a sequence. 32 bits: a launch has at most 2^30 rows.
  [[nodiscard]] KVTILT_HD std::int32_t first(int sequence) const {
    return sequence + static_cast<std::int32_t>(rows_.first(sequence) >> shift_);
  }

  /// The last of `count` sequences whose first unit is `unit` or less, or else 0. A warp tests 32
  /// sequences at a time: two dependent loads for up to 1057 of them, and none for a single one or
  /// without indptr.
  template <class Threads>
  [[nodiscard]] KVTILT_HD int find(const Threads& threads, int count, std::int32_t unit) const {
    int low = 0;
    int high = count;
    KVTILT_DEVICE_LOOP
    while (high - low > 1) {
      const int step = (high - low + warp_lanes - 2) / warp_lanes;
      const int probe = low + (threads.lane() + 1) * step;
      low += count_bits(threads.ballot(probe < high && first(probe) <= unit)) * step;
      if (low + step < high) high = low + step;
    }
    return low;
  }

 private:
  BatchRows rows_;
  int shift_;
};

/// The pages of new tokens alone that leave the tail, numbered from where the tail starts.
KVTILT_HD constexpr TailBlocks new_pages(const AppendPlan& plan, int page_tokens) {
  const std::int64_t before = plan.length - plan.tail_start;
  const std::int64_t first = before <= 0 ? 0 : (before + page_tokens - 1) / page_tokens;
  return {first > plan.seals ? plan.seals : static_cast<std::int32_t>(first), plan.seals};
}

/// The 16-bit blocks of tail and sinks that one of a sequence's units fills, and seals if they
/// leave the tail: all but `pages`. Blocks are dealt out by their slot in the ring, since those
/// that reuse a slot must be taken in order, by one unit. The first unit gets the sinks (-1), too;
/// if units are fewer than slots, it gets everything.
class TailShare {
 public:
  KVTILT_HD TailShare(const AppendPlan& plan, const LayerView& layer, const TailBlocks& pages,
                      int unit, int units)
      : pages_(pages), unit_(unit), share_(units < layer.ring_blocks ? 1 : layer.ring_blocks) {
    const TailBlocks all = all_blocks(plan, layer);
    end_ = all.last;
    first_ = end_;
    if (unit >= share_) return;
    first_ = all.first;
    if (all.first >= 0 || unit > 0) first_ = at_or_after(all.first < 0 ? 0 : all.first);
  }

  [[nodiscard]] KVTILT_HD std::int32_t first() const { return first_; }
  [[nodiscard]] KVTILT_HD std::int32_t next(std::int32_t index) const {
    return at_or_after(index + 1);
  }
  /// Whether `index` is one of them, not past the last.
  [[nodiscard]] KVTILT_HD bool has(std::int32_t index) const { return index < end_; }
  [[nodiscard]] KVTILT_HD bool empty() const { return !has(first_); }

 private:
  [[nodiscard]] KVTILT_HD std::int32_t at_or_after(std::int32_t index) const {
    index = own(index);
    return index >= pages_.first && index < pages_.last ? own(pages_.last) : index;
  }
  [[nodiscard]] KVTILT_HD std::int32_t own(std::int32_t index) const {
    const std::int32_t ahead = unit_ - index % share_;
    return index + (ahead < 0 ? ahead + share_ : ahead);
  }

  TailBlocks pages_;
  std::int32_t first_;
  std::int32_t end_;
  int unit_;
  int share_;
};

/// What one unit does for one head; shared, as the threads' registers are full.
struct PackShared {
  AppendShared append;
  TailShare tail;
  std::int32_t page;       ///< one of new tokens alone, numbered from the tail's start; -1: none
  std::byte* block;        ///< where the block or page being sealed goes
  std::uint32_t expected;  ///< blocks of the sequence that arrive
};

/// Prefetches a page's input rows into L2; the latency hides behind planning and other setup.
template <class Threads>
KVTILT_HD void prefetch_rows(const Threads& threads, const AppendArguments& arguments,
                             std::int64_t first_row, int head) {
  constexpr std::uintptr_t line = 128;
  const int tokens = arguments.layer.page_tokens;
  KVTILT_DEVICE_LOOP
  for (int i = threads.thread(); i < 2 * tokens; i += threads.thread_count()) {
    const bool keys = i < tokens;
    const TensorView& rows = keys ? arguments.keys : arguments.values;
    const int dim = keys ? arguments.layer.key_dim : arguments.layer.stored_values();
    const int bytes = static_cast<int>(element_bytes(rows.type));
    const std::int64_t first =
        (first_row + (keys ? i : i - tokens)) * rows.token_stride + head * rows.head_stride;
    const std::byte* at = static_cast<const std::byte*>(rows.data) + first * bytes;
    const std::byte* const end = at + dim * bytes;
    at -= reinterpret_cast<std::uintptr_t>(at) % line;
    KVTILT_DEVICE_LOOP
    for (; at < end; at += line) threads.prefetch(at);
  }
}

/// The thread that arrives for its block: not in warp 0, which does most of the setup.
template <class Threads>
KVTILT_HD int arriving_thread(const Threads& threads) {
  return threads.thread_count() - warp_lanes;
}

template <class Threads>
KVTILT_HD std::uint32_t arrive(const Threads& threads, const PackShared& pack) {
  return arrive(threads, pack.append.arguments.layer, pack.append.work.sequence);
}

/// The last block of a sequence to arrive publishes its state and table. What other blocks still
/// write is read only by the kernels that follow. `before`: what arrive() gave arriving_thread().
template <class Threads>
KVTILT_HD void publish_last(const Threads& threads, PackShared& pack, std::uint32_t before) {
  AppendShared& shared = pack.append;
  if (threads.thread() == arriving_thread(threads)) {
    shared.last = before + 1 == pack.expected;
    if (shared.last) threads.fence();
  }
  threads.sync();
  if (!shared.last) return;
  const LayerView& layer = shared.arguments.layer;
  const AppendHead& work = shared.work;
  SequenceState state = work.state;
  finish_append(threads, layer.placement(), work.plan, layer.ring_blocks, state, work.table);
  if (threads.thread() != 0) return;
  layer.states[work.sequence] = state;
  layer.arrivals[work.sequence] = 0;
}

/// Gives unit `unit` of a sequence's `units` its blocks and its page.
template <class Threads>
KVTILT_HD void plan_unit(const Threads& threads, PackShared& pack, int unit, int units) {
  const LayerView& layer = pack.append.arguments.layer;
  const AppendHead& work = pack.append.work;
  const AppendPlan& plan = work.plan;
  const TailBlocks pages = new_pages(plan, layer.page_tokens);
  const std::int32_t first = pages.first < plan.skipped ? plan.skipped : pages.first;
  const std::int32_t page = unit > 0 && first + unit <= pages.last ? first + unit - 1 : -1;
  if (page >= 0)
    prefetch_rows(threads, pack.append.arguments,
                  work.first_row + new_tokens_of(plan, layer, page).first, work.head);
  if (threads.thread() == 0) {
    pack.tail = TailShare(plan, layer, pages, unit, units);
    pack.page = page;
    if (page >= 0)
      threads.prefetch(reinterpret_cast<const std::byte*>(
          work.table + entry_for(plan, work.state, page - plan.skipped)));
    pack.expected = static_cast<std::uint32_t>(units * layer.kv_heads);
  }
  threads.sync();
}

/// Whether a page keeps a head's rows in 16 bits, so that there is nothing to seal.
KVTILT_HD constexpr bool stays_half(const HeadLayout& sealed) {
  return !sealed.key.format.quantized() && !sealed.value.format.quantized();
}

/// Where the rows of the unit's page are written: to shared memory, or, if they stay in 16 bits,
/// straight to the page, which has the same order.
template <class Threads>
KVTILT_HD HalfBlock page_rows(const Threads& threads, const PackShared& pack,
                              const HeadLayout& sealed, bool straight) {
  if (straight) return {pack.block + sealed.key.codes, pack.block + sealed.value.codes};
  const LayerView& layer = pack.append.arguments.layer;
  std::byte* const staged = threads.shared() + sizeof(PackShared) + layer.seal_bytes;
  return {staged, staged + layer.page_tokens * layer.key_dim * static_cast<int>(sizeof(F16))};
}

/// Fills, and seals, the unit's share of the tail, then its page. If the share is empty, all that
/// is read of the tables is the page's index, so the block then arrives here: `before` is what
/// arrive() gave.
template <FitRules Rules, class Threads>
KVTILT_HD void fill_unit(const Threads& threads, PackShared& pack, std::uint32_t& before) {
  const AppendArguments& arguments = pack.append.arguments;
  const AppendHead& work = pack.append.work;
  const LayerView& layer = arguments.layer;
  KVTILT_DEVICE_LOOP
  for (std::int32_t in_tail = pack.tail.first();; in_tail = pack.tail.next(in_tail)) {
    const bool fresh = !pack.tail.has(in_tail);
    if (fresh && pack.page < 0) return;
    const std::int32_t index = fresh ? pack.page : in_tail;
    const HeadLayout& sealed = layer.head(PageKind::Sealed, work.head);
    const bool straight = fresh && stays_half(sealed);
    const auto look_up = [&] {
      if (threads.thread() != arriving_thread(threads)) return;
      pack.block = sealed_block(layer, work, index);
      if (fresh && pack.tail.empty()) before = arrive(threads, pack);
    };
    if (straight) {
      look_up();
      threads.sync();
    }
    const HalfBlock to =
        fresh ? page_rows(threads, pack, sealed, straight) : half_block(layer, work, index);
    const NewTokens added = new_tokens_of(work.plan, layer, index);
    if (added.count > 0)
      write_tokens(threads, arguments, work, half_layout(layer, work, index), to, added);
    if (is_sealed(work.plan, index) && !straight) {
      look_up();  // while other threads still write rows
      seal_head<Rules>(threads, to.keys, to.values, sealed, pack.block,
                       threads.shared() + sizeof(PackShared));
      threads.sync();
    }
    if (fresh) return;
  }
}

}  // namespace detail

/// Dynamic shared memory of a block, in bytes; if the device has less, use append().
KVTILT_HD constexpr std::size_t pack_shared_bytes(const LayerView& layer) {
  return sizeof(detail::PackShared) + static_cast<std::size_t>(layer.seal_bytes) +
         static_cast<std::size_t>(layer.page_tokens) *
             static_cast<std::size_t>(layer.key_dim + layer.stored_values()) * sizeof(F16);
}

/// Body of the kernel: pack_blocks() blocks of pack_threads threads, pack_shared_bytes(). All formats
/// of the layer's sealed pages must go by `Rules`.
template <FitRules Rules, class Threads>
KVTILT_HD void pack(const Threads& threads, const AppendArguments& arguments) {
  // Unsigned divisions take fewer instructions.
  const unsigned heads = static_cast<unsigned>(arguments.layer.kv_heads);
  const int place = static_cast<int>(static_cast<unsigned>(threads.block()) / heads);
  const int head = threads.block() - place * arguments.layer.kv_heads;
  if (!detail::rows_are_sound(threads, arguments)) return;
  const detail::PackUnits all(arguments);
  const int sequence = all.find(threads, arguments.batch.count, place);
  const int unit = place - all.first(sequence);
  const int units = all.first(sequence + 1) - all.first(sequence);
  // Units are left over where rows do not fill pages or belong to no sequence.
  if (unit < 0 || unit >= units) return;
  if (!detail::plan_head(threads, arguments, sequence, head, unit == 0 && head == 0)) return;
  auto& shared = *reinterpret_cast<detail::PackShared*>(threads.shared());
  detail::plan_unit(threads, shared, unit, units);
  std::uint32_t before = 0;
  detail::fill_unit<Rules>(threads, shared, before);
  if (!shared.tail.empty() || shared.page < 0) {
    threads.sync();
    if (threads.thread() == detail::arriving_thread(threads))
      before = detail::arrive(threads, shared);
  }
  detail::publish_last(threads, shared, before);
}

}  // namespace kvtilt::cuda
