// SPDX-License-Identifier: MIT
/// How all kernels are launched. One that was compiled for compute capability 9.0 or later may be
/// started while the kernel in front of it in the stream still runs, and waits by itself until that
/// one has ended: DeviceThreads::in_turn(). So a step, also one that a graph replays, does not pay for
/// each launch; KVTILT_CUDA_EARLY_START says what that asks of an engine, and turns it off.
#pragma once

#include <kvtilt/cuda/machine.hpp>

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda::detail {

/// Whether code waits by itself for the kernels in front of it, and can be told so in a graph.
///
/// ptx     version that the code was compiled for, 10 x major + minor: a device of 9.0 may run that
///         of 8.0, which does not wait
/// driver  1000 x major + 10 x minor
constexpr bool takes_turns(int ptx, int driver) {
  return KVTILT_CUDA_EARLY_START && ptx >= 90 && driver >= 12030;
}

/// Once for each kernel and device, before the first launch there: lets it have as much dynamic shared
/// memory as a block of the device may. The limit belongs to the kernel: were it what one launch needs,
/// another thread's, or another object's, would fail. A cudaDeviceReset() forgets it, and nothing here
/// notices: launches of more than 48 KiB then fail.
///
/// early  whether its code takes turns
template <auto Kernel>
cudaError_t prepare(bool& early) {
  static std::atomic<std::uint64_t> prepared{0};
  static std::atomic<std::uint64_t> takes_turns_on{0};
  constexpr int remembered = 64;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::uint64_t bit = device < remembered ? std::uint64_t{1} << device : 0;
  if ((prepared.load(std::memory_order_acquire) & bit) != 0) {
    early = (takes_turns_on.load(std::memory_order_relaxed) & bit) != 0;
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
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // it is reported: the engine's next question is not for it
    return error;
  }
  early = takes_turns(code.ptxVersion, driver);
  if (early) takes_turns_on.fetch_or(bit, std::memory_order_relaxed);
  prepared.fetch_or(bit, std::memory_order_release);
  return cudaSuccess;
}

/// Starts a kernel, which waits for its turn before it does anything else.
template <auto Kernel, class... Arguments>
cudaError_t launch(int blocks, int threads, std::size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  bool waits = false;
  if (const cudaError_t error = prepare<Kernel>(waits); error != cudaSuccess) return error;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = waits ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, Kernel, arguments...);
  return error == cudaSuccess ? error : cudaGetLastError();
}

/// launch() of a kernel that is chosen at run time.
template <class... Arguments>
using Launch = cudaError_t (*)(int blocks, int threads, std::size_t shared_bytes,
                               cudaStream_t stream, const Arguments&... arguments);

}  // namespace kvtilt::cuda::detail
