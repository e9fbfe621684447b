// SPDX-License-Identifier: MIT
/// Bodies of the small kernels behind reserve, truncate, remove, fork and close. Each works on all
/// layers of a sequence with the states and tables in device memory, so the host waits for nothing.
/// A call that the device refuses changes no layer.
#pragma once

#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Layers of a cache in device memory.
struct Layers {
  const LayerView* views;
  int count;
};

/// Pages `first` to first + count - 1 of one layer's pool.
struct PageRun {
  std::int32_t layer;
  std::int32_t first;
  std::int32_t count;
};

/// Pages for one sequence as a kernel argument, so nothing has to be staged in device memory. A
/// launch takes 4 KiB of arguments.
struct GivenPages {
  static constexpr int capacity = 300;
  std::int32_t sequence;
  std::int32_t runs;
  PageRun run[capacity];
};

/// Blocks of the launch: one per layer, from the first layer that is given pages to the last.
inline int give_pages_blocks(const GivenPages& given) {
  return given.run[given.runs - 1].layer - given.run[0].layer + 1;
}

/// Appends the runs to the sequence's page tables as unused pages. Runs are sorted by layer; after
/// churn there may be as many runs as pages.
template <class Threads>
KVTILT_HD void give_pages_body(const Threads& threads, const Layers& layers,
                               const GivenPages& given) {
  const std::int32_t layer = given.run[0].layer + threads.block();
  const LayerView& view = layers.views[layer];
  if (view.kv_heads == 0) return;
  SequenceState& state = view.states[given.sequence];
  PageSlot* table = view.table(given.sequence);
  std::int32_t end = state.page_capacity;
  threads.sync();  // all threads have read state.page_capacity
  KVTILT_DEVICE_LOOP
  for (int i = 0; i < given.runs; ++i) {
    const PageRun& run = given.run[i];
    if (run.layer != layer) continue;
    // The host checks this too: it fails here only if the host was not told of appends.
    if (end + static_cast<std::int64_t>(run.count) > view.table_stride) {
      if (threads.thread() == 0)
        record_error(threads, view.records,
                     sequence_fault(DeviceFault::TableFull, layer, given.sequence, state.length));
      continue;
    }
    for (std::int32_t page = threads.thread(); page < run.count; page += threads.thread_count())
      table[end + page] = {0, run.first + page, 0};
    end += run.count;
  }
  if (threads.thread() == 0) state.page_capacity = end;
}

namespace detail {

/// Sets the block's `refusing`, a layer or -1, unless another thread has.
template <class Threads>
KVTILT_HD void refuse(const Threads& threads, std::int32_t& refusing, int layer) {
  (void)threads.atomic_compare_and_swap(reinterpret_cast<std::uint32_t*>(&refusing), 0xffffffffu,
                                        static_cast<std::uint32_t>(layer));
}

}  // namespace detail

/// Shared pages that a sequence must drop, as a kernel argument.
struct DroppedPages {
  static constexpr int capacity = 300;
  struct Page {
    std::int32_t layer;
    std::int32_t page;
  };
  std::int32_t sequence;
  std::int32_t count;
  Page pages[capacity];
};

/// One block. 4 bytes of shared memory. Takes entries with these pages out of the table, as a
/// removal would. Usually there are none left: the call in which the host dropped them has dropped
/// them on the device too, unless the device refused it or the host was not told of other calls.
template <class Threads>
KVTILT_HD void drop_shared_body(const Threads& threads, const Layers& layers,
                                const DroppedPages& dropped) {
  std::int32_t& found = *reinterpret_cast<std::int32_t*>(threads.shared());
  for (int i = 0; i < dropped.count; ++i) {
    const LayerView& view = layers.views[dropped.pages[i].layer];
    SequenceState& state = view.states[dropped.sequence];
    PageSlot* table = view.table(dropped.sequence);
    const std::int32_t capacity = state.page_capacity;
    if (threads.thread() == 0) found = -1;
    threads.sync();
    for (std::int32_t entry = threads.thread(); entry < capacity; entry += threads.thread_count())
      if (table[entry].page == dropped.pages[i].page) found = entry;  // at most one matches
    threads.sync();
    const std::int32_t entry = found;
    threads.sync();  // all threads have read found
    if (entry < 0) continue;
    detail::rotate_slots(threads, table + entry, capacity - entry, 1);
    if (threads.thread() == 0) {
      state.page_capacity = capacity - 1;
      state.page_end -= entry < state.page_end ? 1 : 0;
      state.shared_end -= entry < state.shared_end ? 1 : 0;
    }
    threads.sync();
  }
}

/// Any number of blocks; each thread takes a layer at a time. Empties a sequence: for open and
/// close.
template <class Threads>
KVTILT_HD void reset_body(const Threads& threads, const Layers& layers, int sequence) {
  const int step = threads.block_count() * threads.thread_count();
  const int first = threads.block() * threads.thread_count() + threads.thread();
  for (int layer = first; layer < layers.count; layer += step) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0) continue;
    view.states[sequence] = empty_state(view.placement(), 0);
    // An append whose blocks saw different tables or slots leaves a count behind; not beyond this.
    view.arrivals[sequence] = 0;
  }
}

/// The sequences of a batch and the lengths to truncate them to.
struct Truncation {
  Batch batch;                  ///< no sequence twice
  const std::int64_t* lengths;  ///< device, [sequences]; null: `length` for all
  std::int64_t length;
};

KVTILT_HD constexpr int truncate_blocks(const Layers& layers, const Truncation& request) {
  return layers.count * request.batch.count;
}

/// truncate_blocks() blocks: one for each layer of each sequence. 4 bytes of shared memory.
///
/// Blocks do not wait for each other: one may check a layer that another has already truncated, in
/// whole or in part. That is harmless: a truncated layer passes the check just the same.
template <class Threads>
KVTILT_HD void truncate_body(const Threads& threads, const Layers& layers,
                             const Truncation& request) {
  std::int32_t& refusing = *reinterpret_cast<std::int32_t*>(threads.shared());
  const int index = threads.block() / layers.count;
  const int own = threads.block() - index * layers.count;
  const int sequence = request.batch.slots[index];
  if (sequence < 0) return;
  const std::int64_t length = request.lengths != nullptr ? request.lengths[index] : request.length;
  if (threads.thread() == 0) refusing = length < 0 ? 0 : -1;
  threads.sync();
  KVTILT_DEVICE_LOOP
  for (int layer = threads.thread(); layer < layers.count; layer += threads.thread_count()) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0 || view.window == 0) continue;
    const SequenceState& state = view.states[sequence];
    if (view.placement().needs_freed_tokens(threads.load_racing(&state.first_kept),
                                            threads.load_racing(&state.length), length))
      detail::refuse(threads, refusing, layer);
  }
  threads.sync();
  if (refusing >= 0) {
    if (threads.thread() == 0 && own == 0)
      record_error(threads, layers.views[refusing].records,
                   sequence_fault(DeviceFault::TruncationRefused, refusing, sequence, length));
    return;
  }
  const LayerView& view = layers.views[own];
  if (view.kv_heads == 0) return;
  SequenceState state = view.states[sequence];
  truncate(threads, view.placement(), state, view.table(sequence), length);
  threads.sync();
  if (threads.thread() == 0) view.states[sequence] = state;
}

/// One block. 4 bytes of shared memory. First checks all layers, then drops the pages.
template <class Threads>
KVTILT_HD void remove_body(const Threads& threads, const Layers& layers, int sequence,
                           std::int64_t from, std::int64_t to) {
  std::int32_t& refusing = *reinterpret_cast<std::int32_t*>(threads.shared());
  if (threads.thread() == 0) refusing = -1;
  threads.sync();
  std::int32_t first = 0;
  std::int32_t last = 0;
  for (int layer = 0; layer < layers.count; ++layer) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0) continue;
    const PageSlot* table = view.table(sequence);
    bool whole = find_pages(view.placement(), view.states[sequence], table, from, to, first, last);
    for (std::int32_t entry = first + threads.thread(); whole && entry + 1 < last;
         entry += threads.thread_count())
      whole = follows_at_once(table + entry);
    if (!whole) detail::refuse(threads, refusing, layer);
  }
  threads.sync();
  if (refusing >= 0) {
    if (threads.thread() == 0)
      record_error(threads, layers.views[refusing].records,
                   sequence_fault(DeviceFault::RemovalRefused, refusing, sequence, from));
    return;
  }
  for (int layer = 0; layer < layers.count; ++layer) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0) continue;
    SequenceState state = view.states[sequence];
    (void)find_pages(view.placement(), state, view.table(sequence), from, to, first, last);
    threads.sync();  // all threads have searched the table
    drop_pages(threads, state, view.table(sequence), first, last);
    if (threads.thread() == 0) view.states[sequence] = state;
  }
}

/// What the host believes of one layer of the sequence to fork: a 48-bit hash of which pages are in
/// use, in which order, and of where the tail starts. 48 bits, since a launch takes 4 KiB of
/// arguments. The order matters: how pages that a window or truncation frees are reused depends on
/// how many tokens came at a time.
class ForkLayer {
 public:
  constexpr ForkLayer() = default;
  /// pages  the sum of page_term() over the pages in use, in any order
  KVTILT_HD constexpr ForkLayer(const SequenceState& state, std::uint64_t pages)
      : ForkLayer(mix(static_cast<std::uint64_t>(state.tail_start)) + pages) {}

  /// The term of the i-th page in use. Other pages, another order, or other positions or numbers of
  /// tokens give the same sum with a chance of 2^-48.
  KVTILT_HD static constexpr std::uint64_t page_term(std::int32_t i, const PageSlot& slot) {
    const std::uint64_t page = static_cast<std::uint32_t>(slot.page);
    return mix(mix(static_cast<std::uint64_t>(i + 1) << 32 | page) +
               (static_cast<std::uint64_t>(slot.first_position) << 8) +
               static_cast<std::uint64_t>(slot.tokens));
  }

  [[nodiscard]] KVTILT_HD constexpr bool operator==(const ForkLayer& other) const {
    return word_[0] == other.word_[0] && word_[1] == other.word_[1] && word_[2] == other.word_[2];
  }

 private:
  KVTILT_HD constexpr explicit ForkLayer(std::uint64_t number) {
    for (int i = 0; i < 3; ++i) word_[i] = static_cast<std::uint16_t>(number >> (16 * i));
  }
  /// The finalizer of MurmurHash3.
  KVTILT_HD static constexpr std::uint64_t mix(std::uint64_t number) {
    number = (number ^ number >> 33) * 0xff51afd7ed558ccdu;
    number = (number ^ number >> 33) * 0xc4ceb9fe1a85ec53u;
    return number ^ number >> 33;
  }

  std::uint16_t word_[3] = {};
};

/// What the host believes of the sequence to fork. The host counts the references to pages, so
/// forking anything else would let the child read pages that may be given away; and tails that
/// start elsewhere would let later calls free different pages on host and device.
struct ForkRequest {
  std::int32_t from;
  std::int32_t to;
  std::int64_t length;
  ForkLayer layers[max_layers];
};
static_assert(sizeof(Layers) + sizeof(ForkRequest) <= 4096);

/// Any number of blocks, of whole warps. 4 bytes of shared memory. `to` must be empty, and stays so
/// if the fork is refused. Blocks do not wait for each other, so each checks all layers: a warp per
/// layer, to have many loads in flight.
template <class Threads>
KVTILT_HD void fork_body(const Threads& threads, const Layers& layers, const ForkRequest& request) {
  std::int32_t& refusing = *reinterpret_cast<std::int32_t*>(threads.shared());
  if (threads.thread() == 0) refusing = -1;
  threads.sync();
  KVTILT_DEVICE_LOOP
  for (int layer = threads.warp(); layer < layers.count; layer += threads.thread_count() / 32) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0) continue;
    // Others may be changing shared_end, which the check leaves out.
    const SequenceState state = threads.load_racing(&view.states[request.from]);
    const PageSlot* table = view.table(request.from) + state.first_page;
    const std::int32_t count = state.page_end - state.first_page;
    std::uint64_t pages = 0;
    for (std::int32_t i = threads.lane(); i < count; i += 32)
      pages += ForkLayer::page_term(i, table[i]);
    for (int mask = 16; mask > 0; mask /= 2) pages += threads.shuffle_xor(pages, mask);
    if (state.length != request.length || !(ForkLayer(state, pages) == request.layers[layer]))
      detail::refuse(threads, refusing, layer);
  }
  threads.sync();
  if (refusing >= 0) {
    const LayerView& view = layers.views[refusing];
    if (threads.thread() == 0 && threads.block() == 0)
      record_error(threads, view.records,
                   sequence_fault(DeviceFault::ForkRefused, refusing, request.from,
                                  view.states[request.from].length));
    // The host has already counted the pages as shared: they must not be written again.
    for (int layer = threads.block(); layer < layers.count; layer += threads.block_count())
      if (threads.thread() == 0 && layers.views[layer].kv_heads > 0) {
        SequenceState& state = layers.views[layer].states[request.from];
        state.shared_end = state.page_end;
      }
    return;
  }
  for (int layer = threads.block(); layer < layers.count; layer += threads.block_count()) {
    const LayerView& view = layers.views[layer];
    if (view.kv_heads == 0) continue;
    SequenceState from = view.states[request.from];
    SequenceState to = view.states[request.to];
    share_pages(threads, from, view.table(request.from), to, view.table(request.to));
    threads.sync();
    if (threads.thread() != 0) continue;
    view.states[request.from] = from;
    view.states[request.to] = to;
  }
}

/// Number of tail blocks that hold tokens.
KVTILT_HD constexpr int tail_blocks(const LayerView& view, const SequenceState& state) {
  const std::int64_t tokens = state.length - state.tail_start;
  return tokens <= 0 ? 0 : static_cast<int>((tokens + view.page_tokens - 1) / view.page_tokens);
}

template <class Threads>
KVTILT_HD void copy_block(const Threads& threads, const std::byte* from, std::byte* to,
                          std::int64_t bytes) {
  constexpr int together = 4;  // loads in flight
  const std::int64_t step = static_cast<std::int64_t>(threads.thread_count()) * 16;
  std::int64_t at = static_cast<std::int64_t>(threads.thread()) * 16;
  KVTILT_DEVICE_LOOP
  for (; at + (together - 1) * step < bytes; at += together * step) {
    Words copies[together];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) copies[i] = load_words(from + at + i * step);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) *reinterpret_cast<Words*>(to + at + i * step) = copies[i];
  }
  KVTILT_DEVICE_LOOP
  for (; at < bytes; at += step) *reinterpret_cast<Words*>(to + at) = load_words(from + at);
}

/// Copies sinks and tail after fork_body. Any number of blocks, each copies one 16-bit block at a
/// time. A refused fork has left `to` empty, so nothing is copied.
template <class Threads>
KVTILT_HD void fork_blocks_body(const Threads& threads, const Layers& layers, int from, int to,
                                int blocks_per_layer) {
  const int total = layers.count * blocks_per_layer;
  for (int i = threads.block(); i < total; i += threads.block_count()) {
    const LayerView& view = layers.views[i / blocks_per_layer];
    if (view.kv_heads == 0) continue;
    const int index = i % blocks_per_layer;  // 0: sinks; else tail block index - 1
    const SequenceState& state = view.states[to];
    if (index == 0) {
      if (state.length > 0)
        copy_block(threads, view.sinks(from), view.sinks(to),
                   view.block_bytes[static_cast<int>(PageKind::Sinks)]);
    } else if (index <= tail_blocks(view, state)) {
      copy_block(threads, view.tail(from, state.ring_head, index - 1),
                 view.tail(to, state.ring_head, index - 1),
                 view.block_bytes[static_cast<int>(PageKind::Tail)]);
    }
  }
}

}  // namespace kvtilt::cuda
