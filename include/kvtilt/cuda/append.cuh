// SPDX-License-Identifier: MIT
/// Launch of append.hpp.
#pragma once

#include <kvtilt/cuda/append.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/threads.cuh>

#include <cstddef>

#include <cuda_runtime.h>

namespace kvtilt::cuda {

namespace detail {

template <int threads>
__global__ void __launch_bounds__(threads)
    append_kernel(const __grid_constant__ AppendArguments arguments) {
  append(DeviceThreads{}, arguments);
}

}  // namespace detail

/// Adds tokens to one layer of a batch. Arguments were checked; there is at least one sequence.
inline Status launch_append(const AppendArguments& arguments, cudaStream_t stream) {
  const auto kernel = detail::append_kernel<append_threads>;
  const std::size_t shared = append_shared_bytes(arguments.layer);
  constexpr std::size_t without_asking = 48 << 10;
  if (shared > without_asking)
    KVTILT_RETURN_IF_ERROR(
        to_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)),
                  "asking for shared memory"));
  kernel<<<append_blocks(arguments), append_threads, shared, stream>>>(arguments);
  return launched("appending tokens");
}

}  // namespace kvtilt::cuda
