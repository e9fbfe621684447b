// SPDX-License-Identifier: MIT
/// Version numbers and the few macros every header shares.
#pragma once

#define KVTILT_VERSION_MAJOR 0
#define KVTILT_VERSION_MINOR 1
#define KVTILT_VERSION_PATCH 0

static_assert(sizeof(void*) == 8, "kvtilt needs a 64-bit system: caches exceed 4 GiB");

/// Marks functions for host and device: arithmetic that CPU and CUDA kernels share.
#if defined(__CUDACC__)
#define KVTILT_HD __host__ __device__
#else
#define KVTILT_HD
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define KVTILT_X86 1
#else
#define KVTILT_X86 0
#endif

// AArch64 with Advanced SIMD (NEON), which only -mgeneral-regs-only disables.
#if defined(__aarch64__) && defined(__ARM_NEON)
#define KVTILT_ARM64 1
#else
#define KVTILT_ARM64 0
#endif
