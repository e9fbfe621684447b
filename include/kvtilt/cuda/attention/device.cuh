// SPDX-License-Identifier: MIT
/// The current device's limits, and how kernels fit them.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/attention/arguments.hpp>
#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_per_block = 0;  ///< bytes, with the opt-in
  int shared_per_multiprocessor = 0;
  int architecture = 0;  ///< compute capability, 10 x major + minor

  /// The most bytes of shared memory per block with which `blocks` blocks fit a multiprocessor.
  [[nodiscard]] int shared_of_each(int blocks) const {
    const int each = shared_per_multiprocessor / blocks - 1024;  // that CUDA reserves per block
    return each < shared_per_block ? each : shared_per_block;
  }

  static Result<DeviceLimits> current() {
    constexpr const char* preparing = "preparing attention";
    DeviceLimits limits;
    int device = 0;
    KVTILT_RETURN_IF_ERROR(to_status(cudaGetDevice(&device), preparing));
    const auto attribute = [&](cudaDeviceAttr name, int& value) {
      return to_status(cudaDeviceGetAttribute(&value, name, device), preparing);
    };
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrMultiProcessorCount, limits.multiprocessors));
    KVTILT_RETURN_IF_ERROR(
        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, limits.shared_per_block));
    KVTILT_RETURN_IF_ERROR(
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, limits.shared_per_multiprocessor));
    int minor = 0;
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrComputeCapabilityMajor, limits.architecture));
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrComputeCapabilityMinor, minor));
    limits.architecture = 10 * limits.architecture + minor;
    return limits;
  }
};

/// How many blocks of a kernel fit a multiprocessor, at least one; else Unsupported.
template <auto Kernel>
Result<int> blocks_that_fit(int threads, std::size_t shared_bytes) {
  constexpr const char* preparing = "preparing attention";
  bool uses_pdl = false;
  int blocks = 0;
  KVTILT_RETURN_IF_ERROR(to_status(detail::prepare<Kernel>(uses_pdl), preparing));
  KVTILT_RETURN_IF_ERROR(to_status(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, Kernel, threads, shared_bytes),
      preparing));
  if (blocks == 0)
    return Status::error(ErrorCode::Unsupported,
                         "no block of %d threads with %zu bytes of shared memory fits a "
                         "multiprocessor of this device",
                         threads, shared_bytes);
  return blocks;
}

/// Zeros a workspace's counters, for prepare().
inline Status zero_counters(std::span<std::byte> workspace, std::size_t needed,
                            cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(check_workspace(workspace, needed));
  return to_status(
      cudaMemsetAsync(workspace.data(), 0, most_attend_blocks * sizeof(std::uint32_t), stream),
      "preparing a workspace");
}

}  // namespace kvtilt::cuda
