// SPDX-License-Identifier: MIT
/// What attention asks of the current device.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>

#include <cuda_runtime.h>

#include <cstddef>

namespace kvtilt::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_per_block = 0;  ///< bytes, opted in to
  int shared_per_multiprocessor = 0;
  int architecture = 0;  ///< compute capability, 10 x major + minor

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

/// Lets a kernel be launched with up to `bytes` of dynamic shared memory.
template <class Kernel>
Status allow_shared(Kernel* kernel, std::size_t bytes) {
  return to_status(detail::allow_shared(kernel, bytes), "preparing attention");
}

/// The same, and how many of its blocks then fit a multiprocessor.
template <class Kernel>
Result<int> blocks_that_fit(Kernel* kernel, int threads, std::size_t shared_bytes) {
  KVTILT_RETURN_IF_ERROR(allow_shared(kernel, shared_bytes));
  int blocks = 0;
  KVTILT_RETURN_IF_ERROR(to_status(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
      "preparing attention"));
  return blocks;
}

}  // namespace kvtilt::cuda
