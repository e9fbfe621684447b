// SPDX-License-Identifier: MIT
/// Loop pragmas for kernel bodies. Loops over arrays in registers must be unrolled by the device
/// compiler: otherwise the arrays are in local memory.
#pragma once

#include <kvtilt/core/config.hpp>

#if defined(__CUDA_ARCH__)
#define KVTILT_DEVICE_UNROLL _Pragma("unroll")
#define KVTILT_DEVICE_LOOP _Pragma("unroll 1")
#else
#define KVTILT_DEVICE_UNROLL
#define KVTILT_DEVICE_LOOP
#endif

namespace kvtilt::cuda {

/// Returns `value`, hidden from the optimizer: expressions of it are not hoisted out of loops,
/// where they would occupy registers.
KVTILT_HD inline int opaque(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

}  // namespace kvtilt::cuda
