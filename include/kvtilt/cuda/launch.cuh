// SPDX-License-Identifier: MIT
/// What all launches share.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace kvtilt::cuda::detail {

/// Starts a kernel; blocks of more than 48 KiB of shared memory must be asked for.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, std::size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t allowed = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(shared_bytes));
    if (allowed != cudaSuccess) return allowed;
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>(
      arguments...);
  return cudaGetLastError();
}

}  // namespace kvtilt::cuda::detail
