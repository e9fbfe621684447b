// SPDX-License-Identifier: MIT
/// Kernels that put tokens into a device cache.
#pragma once

#include <kvtilt/cuda/cache/append.hpp>
#include <kvtilt/cuda/cache/pack.hpp>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// A template only so that many files may include it.
template <class Threads = DeviceThreads>
__global__ void __launch_bounds__(append_threads, compiled_machine.append_blocks)
    append_kernel(const __grid_constant__ AppendArguments arguments) {
  const Threads threads = Threads::in_turn();
  append(threads, arguments);
}

/// A template only so that many files may include it.
template <class Threads = DeviceThreads>
__global__ void __launch_bounds__(pack_threads, compiled_machine.append_blocks)
    pack_kernel(const __grid_constant__ AppendArguments arguments, int units) {
  const Threads threads = Threads::in_turn();
  pack(threads, arguments, units);
}

/// Adds tokens to sequences: one launch, no synchronisation, fit for graphs.
inline cudaError_t launch_append(const AppendArguments& arguments, cudaStream_t stream) {
  constexpr auto kernel = &append_kernel<DeviceThreads>;
  const std::size_t shared = append_shared_bytes(arguments.layer);
  if (const cudaError_t error = detail::allow_shared(kernel, shared); error != cudaSuccess)
    return error;
  return detail::launch<kernel>(append_blocks(arguments), append_threads, shared, stream,
                                arguments);
}

/// The same, faster for prompts. `most_tokens`: no sequence gets more. Heads whose pages do not fit
/// the shared memory of the current device are appended.
inline cudaError_t launch_pack(const AppendArguments& arguments, std::int64_t most_tokens,
                               cudaStream_t stream) {
  constexpr auto kernel = &pack_kernel<DeviceThreads>;
  const std::size_t shared = pack_shared_bytes(arguments.layer);
  int device = 0;
  int limit = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      error != cudaSuccess)
    return error;
  if (shared > static_cast<std::size_t>(limit)) return launch_append(arguments, stream);
  if (const cudaError_t error = detail::allow_shared(kernel, shared); error != cudaSuccess)
    return error;
  const int units = pack_units(arguments.layer, most_tokens);
  return detail::launch<kernel>(pack_blocks(arguments, units), pack_threads, shared, stream,
                                arguments, units);
}

}  // namespace kvtilt::cuda
