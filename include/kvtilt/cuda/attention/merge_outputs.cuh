// SPDX-License-Identifier: MIT
/// Merges partial attention in device memory: split caches, context parallelism, host and GPU parts.
#pragma once

#include <kvtilt/cuda/attention/merge_outputs.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace kvtilt::cuda {

inline constexpr int merge_threads = 128;

template <class Threads>
__global__ void __launch_bounds__(merge_threads)
    merge_kernel(const __grid_constant__ MergeArguments arguments) {
  Threads threads = Threads::after_previous_kernel();
  merge_outputs(threads, arguments);
}

/// Merges `part` into `into`, both normalised outputs with their lse over disjoint keys. An empty part
/// (output 0, lse = -infinity) changes nothing. Commutative and associative up to rounding: merge in a
/// fixed order for reproducible bits. The two must not overlap in memory.
///
/// CAUTION: other libraries' log-sum-exps may have another base or order: FlashInfer's are base 2 (times
/// 0.6931 here), vLLM's are [query_heads, rows].
///
/// into, part  device, [rows, query_heads, value_dim], f32, f16 or bf16, channels contiguous
/// lse         device, [rows, query_heads], natural logarithm, contiguous
/// Fails       InvalidArgument if shapes differ or a pointer is null
/// Cost        one launch, which reads both and writes `into`; does not wait
inline Status merge(const MutableTensorView& into, float* into_lse, const TensorView& part,
                    const float* part_lse, cudaStream_t stream) {
  const MergeArguments arguments{into, into_lse, part, part_lse};
  KVTILT_RETURN_IF_ERROR(check_merge(arguments));
  constexpr std::int64_t warps = merge_threads / warp_lanes;
  constexpr std::int64_t most_blocks = 4096;
  const std::int64_t blocks = std::min(most_blocks, (into.tokens * into.heads + warps - 1) / warps);
  return to_status(detail::launch<&merge_kernel<DeviceThreads>>(
                       static_cast<int>(blocks), merge_threads, 0, stream, arguments),
                   "merging");
}

}  // namespace kvtilt::cuda
