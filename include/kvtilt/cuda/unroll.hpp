// SPDX-License-Identifier: MIT
/// Loops over registers in kernel bodies: unless the device compiler unrolls them, the registers
/// live in memory.
#pragma once

#if defined(__CUDA_ARCH__)
#define KVTILT_DEVICE_UNROLL _Pragma("unroll")
#define KVTILT_DEVICE_LOOP _Pragma("unroll 1")
#else
#define KVTILT_DEVICE_UNROLL
#define KVTILT_DEVICE_LOOP
#endif
