// SPDX-License-Identifier: MIT
/// Loops over registers in kernel bodies: unless the device compiler unrolls them, the registers
/// live in memory.
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

/// The value, of which the compiler knows nothing more: what depends on it stays where it is, and is
/// not computed ahead of a loop around it, to fill registers there.
KVTILT_HD inline int opaque(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

}  // namespace kvtilt::cuda
