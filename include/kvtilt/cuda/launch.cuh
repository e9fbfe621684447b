// SPDX-License-Identifier: MIT
/// Launches all kernels, with programmatic dependent launch (PDL): a kernel compiled for compute
/// capability 9.0 or later may start while the preceding kernel of the stream still runs; it waits
/// for the end of that one itself, in DeviceThreads::after_previous_kernel(). This hides the latency
/// of each launch, in replayed graphs too. KVTILT_CUDA_PDL says what it requires of an engine, and
/// turns it off.
#pragma once

#include <kvtilt/cuda/machine.hpp>

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda::detail {

/// Whether a kernel may be launched with PDL: its code waits for preceding kernels, and the driver
/// supports such launches in graphs too.
///
/// ptx     version that the code was compiled for, 10 x major + minor: a device of 9.0 may run code
///         for 8.0, which does not wait
/// driver  1000 x major + 10 x minor
constexpr bool supports_pdl(int ptx, int driver) {
  return KVTILT_CUDA_PDL && ptx >= 90 && driver >= 12030;
}

/// Before the first launch of a kernel on a device, raises the kernel's limit of dynamic shared
/// memory to what a block of the device may have. The limit is state of the kernel: if each launch
/// set what it needs, launches by other threads or objects could fail. cudaDeviceReset() resets it,
/// which goes unnoticed here: launches with more than 48 KiB then fail.
///
/// uses_pdl  becomes whether to launch it with PDL: supports_pdl()
template <auto Kernel>
cudaError_t prepare(bool& uses_pdl) {
  static std::atomic<std::uint64_t> prepared{0};
  static std::atomic<std::uint64_t> pdl_devices{0};
  constexpr int remembered = 64;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::uint64_t bit = device < remembered ? std::uint64_t{1} << device : 0;
  if ((prepared.load(std::memory_order_acquire) & bit) != 0) {
    uses_pdl = (pdl_devices.load(std::memory_order_relaxed) & bit) != 0;
    return cudaSuccess;
  }
  const void* const kernel = reinterpret_cast<const void*>(Kernel);
  cudaFuncAttributes code{};
  int driver = 0;
  int shared = 0;
  cudaError_t error = cudaFuncGetAttributes(&code, kernel);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared - static_cast<int>(code.sharedSizeBytes));
  if (error != cudaSuccess) return error;
  uses_pdl = supports_pdl(code.ptxVersion, driver);
  if (uses_pdl) pdl_devices.fetch_or(bit, std::memory_order_relaxed);
  prepared.fetch_or(bit, std::memory_order_release);
  return cudaSuccess;
}

/// Launches a kernel, which must call after_previous_kernel() before anything else. 0 blocks: does
/// nothing.
template <auto Kernel, class... Arguments>
cudaError_t launch(int blocks, int threads, std::size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  bool uses_pdl = false;
  if (const cudaError_t error = prepare<Kernel>(uses_pdl); error != cudaSuccess) return error;
  cudaLaunchAttribute pdl{};
  pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  pdl.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &pdl;
  config.numAttrs = uses_pdl ? 1 : 0;
  return cudaLaunchKernelEx(&config, Kernel, arguments...);
}

/// Pointer to launch() of a kernel that is chosen at run time.
template <class... Arguments>
using Launch = cudaError_t (*)(int blocks, int threads, std::size_t shared_bytes,
                               cudaStream_t stream, const Arguments&... arguments);

}  // namespace kvtilt::cuda::detail
