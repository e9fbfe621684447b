// SPDX-License-Identifier: MIT
/// Macros that compile a region of a file for an instruction set that the compiler flags do not name.
/// Include every other header before opening a region, define no lambda inside one (g++ compiles it
/// without the region's target), and do not test __AVX2__ there (it is not defined).
#pragma once

#include <kvtilt/core/config.hpp>

#if KVTILT_X86
// g++ 12 warns about uninitialized variables inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif KVTILT_ARM64
#include <arm_neon.h>
#endif

#define KVTILT_PRAGMA(text) _Pragma(#text)

// Before a loop over an array of registers: without unrolling, at -O2, it would live in memory.
#if defined(__clang__)
#define KVTILT_UNROLL(count) KVTILT_PRAGMA(unroll count)
#else
#define KVTILT_UNROLL(count) KVTILT_PRAGMA(GCC unroll count)
#endif

// For functions that take or return arrays of registers: a call would move these to memory.
#define KVTILT_INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define KVTILT_TARGET_BEGIN(features) \
  KVTILT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KVTILT_TARGET_END KVTILT_PRAGMA(clang attribute pop)
#elif defined(__CUDACC__)
// nvcc passes all pragmas on to g++, but warns that it does not know "unroll" (1675).
#define KVTILT_TARGET_BEGIN(features)  \
  KVTILT_PRAGMA(nv_diagnostic push)    \
  KVTILT_PRAGMA(nv_diag_suppress 1675) \
  KVTILT_PRAGMA(GCC push_options)      \
  KVTILT_PRAGMA(GCC target(features))
#define KVTILT_TARGET_END        \
  KVTILT_PRAGMA(GCC pop_options) \
  KVTILT_PRAGMA(nv_diagnostic pop)
#else
#define KVTILT_TARGET_BEGIN(features) \
  KVTILT_PRAGMA(GCC push_options)     \
  KVTILT_PRAGMA(GCC target(features))
#define KVTILT_TARGET_END KVTILT_PRAGMA(GCC pop_options)
#endif

// The target string of Arm regions. The intrinsics of g++ require all of Armv8.2, which "+dotprod"
// alone does not imply; if the flags have it already, naming it again would drop extensions beyond it.
#if defined(__clang__)
#define KVTILT_ARM_FEATURE(name) name
#elif defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_MATMUL_INT8) || \
    defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC) || defined(__ARM_FEATURE_COMPLEX)
#define KVTILT_ARM_FEATURE(name) "+" name
#else
#define KVTILT_ARM_FEATURE(name) "arch=armv8.2-a+" name
#endif

// A region adds to the compiler's flags, so the same function differs between translation units with
// different -m flags. This tag in the namespace keeps the linker from merging the two.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define KVTILT_BASELINE avx512_vnni
#elif defined(__AVX512F__)
#define KVTILT_BASELINE avx512
#elif defined(__AVXVNNI__)
#define KVTILT_BASELINE avx_vnni
#elif defined(__AVX2__)
#define KVTILT_BASELINE avx2
#elif defined(__AVX__)
#define KVTILT_BASELINE avx
#elif defined(__ARM_FEATURE_SVE2) && defined(__ARM_FEATURE_MATMUL_INT8)
#define KVTILT_BASELINE sve2_i8mm
#elif defined(__ARM_FEATURE_SVE2)
#define KVTILT_BASELINE sve2_dotprod
#elif defined(__ARM_FEATURE_SVE) && defined(__ARM_FEATURE_MATMUL_INT8)
#define KVTILT_BASELINE sve_i8mm
#elif defined(__ARM_FEATURE_SVE) && defined(__ARM_FEATURE_DOTPROD)
#define KVTILT_BASELINE sve_dotprod
#elif defined(__ARM_FEATURE_SVE)
#define KVTILT_BASELINE sve
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define KVTILT_BASELINE i8mm
#elif defined(__ARM_FEATURE_DOTPROD)
#define KVTILT_BASELINE dotprod
#else
#define KVTILT_BASELINE base
#endif
#if defined(__FAST_MATH__)
#define KVTILT_MATH fast
#else
#define KVTILT_MATH strict
#endif
#define KVTILT_ABI_JOIN(major, minor, baseline, math) abi_##major##_##minor##_##baseline##_##math
#define KVTILT_ABI_EXPAND(major, minor, baseline, math) \
  KVTILT_ABI_JOIN(major, minor, baseline, math)
#define KVTILT_ABI \
  KVTILT_ABI_EXPAND(KVTILT_VERSION_MAJOR, KVTILT_VERSION_MINOR, KVTILT_BASELINE, KVTILT_MATH)
