// SPDX-License-Identifier: MIT
/// Launches the kernels of saved_layer.hpp, each for one layer. A load queues the tables' kernel
/// first, then the blocks'.
#pragma once

#include <kvtilt/cuda/cache/saved_layer.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <algorithm>

namespace kvtilt::cuda {

namespace detail {

inline constexpr int saved_table_threads = 128;

// Templates, so that all files that include this share one definition.
template <int threads>
__global__ void __launch_bounds__(threads, 3)
    save_layer_kernel(const __grid_constant__ SaveArguments arguments) {
  save_layer_body(DeviceThreads::after_previous_kernel(), arguments);
}
template <int threads>
__global__ void __launch_bounds__(threads, 3)
    load_layer_kernel(const __grid_constant__ LoadArguments arguments) {
  load_layer_body(DeviceThreads::after_previous_kernel(), arguments);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    load_tables_kernel(const __grid_constant__ LoadArguments arguments) {
  load_tables_body(DeviceThreads::after_previous_kernel(), arguments);
}

}  // namespace detail

/// Writes the blocks of one layer of a sequence to an image.
inline Status launch_save_layer(const SaveArguments& arguments, cudaStream_t stream) {
  return to_status(detail::launch<&detail::save_layer_kernel<saved_threads>>(
                       saved_blocks(arguments.layer, arguments.places), saved_threads,
                       saved_shared_bytes(arguments.layer), stream, arguments),
                   "saving a sequence");
}

/// Sets state and table of an empty sequence's layer: saved tokens go to its first unused pages.
inline Status launch_load_tables(const LoadArguments& arguments, cudaStream_t stream) {
  constexpr int threads = detail::saved_table_threads;
  return to_status(detail::launch<&detail::load_tables_kernel<threads>>(
                       std::max(1, (arguments.saved.pages + threads - 1) / threads), threads, 0,
                       stream, arguments),
                   "loading the tables of a sequence");
}

/// Reads the blocks of one layer of a sequence from an image.
inline Status launch_load_layer(const LoadArguments& arguments, cudaStream_t stream) {
  return to_status(detail::launch<&detail::load_layer_kernel<saved_threads>>(
                       saved_blocks(arguments.layer, arguments.places), saved_threads,
                       saved_shared_bytes(arguments.layer), stream, arguments),
                   "loading a sequence");
}

}  // namespace kvtilt::cuda
