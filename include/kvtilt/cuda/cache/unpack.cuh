// SPDX-License-Identifier: MIT
/// The kernel that copies tokens out of a device cache, and its launch.
#pragma once

#include <kvtilt/cuda/cache/unpack.hpp>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

namespace kvtilt::cuda {

/// A template only so that many files may include it.
template <class Threads = DeviceThreads>
__global__ void __launch_bounds__(unpack_threads, compiled_machine.unpack_blocks)
    unpack_kernel(const __grid_constant__ UnpackArguments arguments) {
  const Threads threads = Threads::after_previous_kernel();
  unpack(threads, arguments);
}

/// One launch, or two for keys and the values in them.
inline cudaError_t launch_unpack(UnpackArguments arguments, cudaStream_t stream) {
  if (arguments.layer.values_in_keys != 0 && arguments.values.data != nullptr) {
    const cudaError_t error = launch_unpack(values_as_keys(arguments), stream);
    if (error != cudaSuccess || arguments.keys.data == nullptr) return error;
    arguments.values = {};
  }
  return detail::launch<&unpack_kernel<DeviceThreads>>(
      unpack_units(arguments.layer, arguments.tokens) * arguments.layer.kv_heads, unpack_threads,
      unpack_shared_bytes, stream, arguments);
}

}  // namespace kvtilt::cuda
