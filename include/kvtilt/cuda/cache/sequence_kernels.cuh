// SPDX-License-Identifier: MIT
/// Launches the small kernels of sequence_calls.hpp.
#pragma once

#include <kvtilt/cuda/cache/sequence_calls.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

namespace detail {

inline constexpr int small_block = 128;

/// Sequence slots as a kernel argument.
struct SlotList {
  static constexpr int capacity = 960;
  std::int32_t count;
  std::int32_t slot[capacity];
  std::int64_t room;  ///< numbers to write: the slots, then -1
};

template <class Threads>
KVTILT_HD void write_slots_body(const Threads& threads, std::int32_t* memory,
                                const SlotList& slots) {
  for (std::int64_t i = threads.thread(); i < slots.room; i += threads.thread_count())
    memory[i] = i < slots.count ? slots.slot[i] : -1;
}

// Templates, so that all files that include this share one definition.
template <int threads>
__global__ void __launch_bounds__(threads)
    give_pages_kernel(Layers layers, const __grid_constant__ GivenPages given) {
  give_pages_body(DeviceThreads::after_previous_kernel(), layers, given);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    drop_shared_kernel(Layers layers, const __grid_constant__ DroppedPages dropped) {
  drop_shared_body(DeviceThreads::after_previous_kernel(), layers, dropped);
}
template <int threads>
__global__ void __launch_bounds__(threads) reset_kernel(Layers layers, int sequence) {
  reset_body(DeviceThreads::after_previous_kernel(), layers, sequence);
}
template <int threads>
__global__ void __launch_bounds__(threads) truncate_kernel(Layers layers, Truncation request) {
  truncate_body(DeviceThreads::after_previous_kernel(), layers, request);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    remove_kernel(Layers layers, int sequence, std::int64_t from, std::int64_t to) {
  remove_body(DeviceThreads::after_previous_kernel(), layers, sequence, from, to);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    fork_kernel(Layers layers, const __grid_constant__ ForkRequest request) {
  fork_body(DeviceThreads::after_previous_kernel(), layers, request);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    fork_blocks_kernel(Layers layers, int from, int to, int blocks_per_layer) {
  fork_blocks_body(DeviceThreads::after_previous_kernel(), layers, from, to, blocks_per_layer);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    write_slots_kernel(std::int32_t* memory, const __grid_constant__ SlotList slots) {
  write_slots_body(DeviceThreads::after_previous_kernel(), memory, slots);
}

}  // namespace detail

/// Gives pages to a sequence. `runs` may be freed when this returns.
inline Status launch_give_pages(Layers layers, int sequence, std::span<const PageRun> runs,
                                cudaStream_t stream) {
  GivenPages given;
  given.sequence = sequence;
  while (!runs.empty()) {
    given.runs = static_cast<std::int32_t>(std::min<std::size_t>(runs.size(), given.capacity));
    std::copy_n(runs.begin(), given.runs, given.run);
    runs = runs.subspan(static_cast<std::size_t>(given.runs));
    KVTILT_RETURN_IF_ERROR(
        to_status(detail::launch<&detail::give_pages_kernel<detail::small_block>>(
                      give_pages_blocks(given), detail::small_block, 0, stream, layers, given),
                  "giving pages to a sequence"));
  }
  return {};
}

/// Makes a sequence drop shared pages, if it still has them.
inline Status launch_drop_shared(Layers layers, const DroppedPages& dropped, cudaStream_t stream) {
  return to_status(detail::launch<&detail::drop_shared_kernel<detail::small_block>>(
                       1, detail::small_block, sizeof(std::int32_t), stream, layers, dropped),
                   "dropping shared pages of a sequence");
}

/// Empties a sequence.
inline Status launch_reset(Layers layers, int sequence, cudaStream_t stream) {
  const int blocks = (layers.count + detail::small_block - 1) / detail::small_block;
  return to_status(detail::launch<&detail::reset_kernel<detail::small_block>>(
                       blocks, detail::small_block, 0, stream, layers, sequence),
                   "opening or closing a sequence");
}

inline Status launch_truncate(Layers layers, const Truncation& request, cudaStream_t stream) {
  return to_status(detail::launch<&detail::truncate_kernel<detail::small_block>>(
                       truncate_blocks(layers, request), detail::small_block, sizeof(std::int32_t),
                       stream, layers, request),
                   "truncating sequences");
}

inline Status launch_remove(Layers layers, int sequence, std::int64_t from, std::int64_t to,
                            cudaStream_t stream) {
  return to_status(
      detail::launch<&detail::remove_kernel<detail::small_block>>(
          1, detail::small_block, sizeof(std::int32_t), stream, layers, sequence, from, to),
      "removing pages of a sequence");
}

/// Forks a sequence: tables and lengths, then sinks and tail.
inline Status launch_fork(Layers layers, const ForkRequest& request, int ring_blocks,
                          cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(to_status(
      detail::launch<&detail::fork_kernel<detail::small_block>>(
          layers.count, detail::small_block, sizeof(std::int32_t), stream, layers, request),
      "forking a sequence"));
  constexpr int threads = 256;
  const int blocks_per_layer = ring_blocks + 1;
  return to_status(detail::launch<&detail::fork_blocks_kernel<threads>>(
                       layers.count * blocks_per_layer, threads, 0, stream, layers, request.from,
                       request.to, blocks_per_layer),
                   "copying the tail of a sequence");
}

/// Writes slots to device memory, which has room for at least as many, and -1 to the rest of it.
/// `slots` may be freed when this returns.
inline Status launch_write_slots(std::span<const std::int32_t> slots,
                                 std::span<std::int32_t> memory, cudaStream_t stream) {
  if (memory.data() == nullptr && !memory.empty())
    return Status::error(ErrorCode::InvalidArgument, "the batch's memory is null, with %zu numbers",
                         memory.size());
  detail::SlotList list;
  while (!memory.empty()) {
    list.count = static_cast<std::int32_t>(std::min<std::size_t>(slots.size(), list.capacity));
    std::copy_n(slots.begin(), list.count, list.slot);
    slots = slots.subspan(static_cast<std::size_t>(list.count));
    const std::size_t room = slots.empty() ? memory.size() : static_cast<std::size_t>(list.count);
    list.room = static_cast<std::int64_t>(room);
    KVTILT_RETURN_IF_ERROR(
        to_status(detail::launch<&detail::write_slots_kernel<detail::small_block>>(
                      1, detail::small_block, 0, stream, memory.data(), list),
                  "uploading a batch"));
    memory = memory.subspan(room);
  }
  return {};
}

}  // namespace kvtilt::cuda
