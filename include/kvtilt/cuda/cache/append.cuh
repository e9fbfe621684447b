// SPDX-License-Identifier: MIT
/// Kernels that append tokens to a device cache, and their launches.
#pragma once

#include <kvtilt/cuda/cache/append.hpp>
#include <kvtilt/cuda/cache/pack.hpp>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvtilt::cuda {

/// A template only so that many files may include it.
template <class Threads = DeviceThreads>
__global__ void __launch_bounds__(append_threads, compiled_machine.append_blocks)
    append_kernel(const __grid_constant__ AppendArguments arguments) {
  const Threads threads = Threads::after_previous_kernel();
  append(threads, arguments);
}

/// Blocks on a multiprocessor that a kernel leaves registers for.
template <FitRules Rules>
inline constexpr int resident_pack_blocks =
    Rules == FitRules::All ? compiled_machine.append_blocks : compiled_machine.pack_blocks;

template <FitRules Rules>
__global__ void __launch_bounds__(pack_threads, resident_pack_blocks<Rules>)
    pack_kernel(const __grid_constant__ AppendArguments arguments) {
  const DeviceThreads threads = DeviceThreads::after_previous_kernel();
  pack<Rules>(threads, arguments);
}

/// Appends tokens to sequences: one launch, no synchronisation, may be captured.
inline cudaError_t launch_append(const AppendArguments& arguments, cudaStream_t stream) {
  constexpr auto kernel = &append_kernel<DeviceThreads>;
  return detail::launch<kernel>(append_blocks(arguments), append_threads,
                                append_shared_bytes(arguments.layer), stream, arguments);
}

/// The most bytes of shared memory that a block of the current device can have.
inline cudaError_t most_shared_bytes(std::size_t& bytes) {
  int device = 0;
  int limit = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const cudaError_t error =
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  bytes = static_cast<std::size_t>(limit);
  return error;
}

/// Like launch_append(), but faster if sequences get a page's worth of tokens or more: pages that hold
/// only new tokens are then sealed by blocks of their own. `most_tokens`, about the most that a
/// sequence gets, is a hint: the result is right for any counts in device memory. Falls back to
/// launch_append() if it is less than a page, or if a head's page does not fit the device's shared
/// memory. Fails with cudaErrorInvalidConfiguration if a launch cannot have enough blocks for the
/// rows.
inline cudaError_t launch_pack(const AppendArguments& arguments, std::int64_t most_tokens,
                               cudaStream_t stream) {
  if (most_tokens < arguments.layer.page_tokens) return launch_append(arguments, stream);
  const std::size_t shared = pack_shared_bytes(arguments.layer);
  std::size_t limit = 0;
  if (const cudaError_t error = most_shared_bytes(limit); error != cudaSuccess) return error;
  if (shared > limit) return launch_append(arguments, stream);
  const std::int64_t blocks = pack_blocks(arguments);
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  const detail::Launch<AppendArguments> launch =
      arguments.layer.min_max_only != 0
          ? &detail::launch<&pack_kernel<FitRules::MinMax>, AppendArguments>
          : &detail::launch<&pack_kernel<FitRules::All>, AppendArguments>;
  return launch(static_cast<int>(blocks), pack_threads, shared, stream, arguments);
}

}  // namespace kvtilt::cuda
