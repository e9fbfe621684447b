// SPDX-License-Identifier: MIT
/// How all kernels are launched. One that was compiled for compute capability 9.0 or later may be
/// started while the kernel in front of it in the stream still runs, and waits by itself until that
/// one has ended: DeviceThreads::in_turn(). So a step, also one that a graph replays, does not pay for
/// each launch ("programmatic dependent launch"); nothing else changes.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda::detail {

/// Lets a kernel be launched with up to `bytes` of dynamic shared memory.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, std::size_t bytes) {
  constexpr std::size_t always_allowed = 48 * 1024;
  if (bytes <= always_allowed) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

/// Whether code waits by itself for the kernels in front of it, and can be told so in a graph.
///
/// ptx     version that the code was compiled for, 10 x major + minor: a device of 9.0 may run that
///         of 8.0, which does not wait
/// driver  1000 x major + 10 x minor
constexpr bool takes_turns(int ptx, int driver) { return ptx >= 90 && driver >= 12030; }

/// The same of a kernel's code on the current device: asked once for each device.
template <auto Kernel>
bool takes_turns() {
  static std::atomic<std::uint64_t> asked{0};
  static std::atomic<std::uint64_t> answers{0};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return false;
  const std::uint64_t bit = std::uint64_t{1} << device;
  if ((asked.load(std::memory_order_acquire) & bit) == 0) {
    cudaFuncAttributes code{};
    int driver = 0;
    if (cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(Kernel)) == cudaSuccess &&
        cudaDriverGetVersion(&driver) == cudaSuccess && takes_turns(code.ptxVersion, driver))
      answers.fetch_or(bit, std::memory_order_relaxed);
    asked.fetch_or(bit, std::memory_order_release);
  }
  return (answers.load(std::memory_order_relaxed) & bit) != 0;
}

/// Starts a kernel, which waits for its turn before it does anything else.
///
/// shared_bytes  dynamic: above 48 KiB only what allow_shared() has allowed
template <auto Kernel, class... Arguments>
cudaError_t launch(int blocks, int threads, std::size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = takes_turns<Kernel>() ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, Kernel, arguments...);
  return error == cudaSuccess ? error : cudaGetLastError();
}

/// launch() of a kernel that is chosen at run time.
template <class... Arguments>
using Launch = cudaError_t (*)(int blocks, int threads, std::size_t shared_bytes,
                               cudaStream_t stream, const Arguments&... arguments);

}  // namespace kvtilt::cuda::detail
