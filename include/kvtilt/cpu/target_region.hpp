// SPDX-License-Identifier: MIT
/// Compiles a region of a file for an instruction set the command line does not name. Include every
/// other header before opening a region, define no lambda inside one (g++ forgets its target), and
/// test no __AVX2__ there (it is not defined).
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
#endif

#define KVTILT_PRAGMA(text) _Pragma(#text)

// Before a loop over registers: without unrolling, at -O2, they would live in memory.
#if defined(__clang__)
#define KVTILT_UNROLL(count) KVTILT_PRAGMA(unroll count)
#else
#define KVTILT_UNROLL(count) KVTILT_PRAGMA(GCC unroll count)
#endif

// For functions whose arrays of registers must not become memory, which a call would make them.
#define KVTILT_INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define KVTILT_TARGET_BEGIN(features) \
  KVTILT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KVTILT_TARGET_END KVTILT_PRAGMA(clang attribute pop)
#else
#define KVTILT_TARGET_BEGIN(features) \
  KVTILT_PRAGMA(GCC push_options)     \
  KVTILT_PRAGMA(GCC target(features))
#define KVTILT_TARGET_END KVTILT_PRAGMA(GCC pop_options)
#endif

// A region adds to the command line's flags, so the same function differs between translation
// units with different -m flags. The tag keeps the linker from taking one for the other.
#if defined(__AVX512F__)
#define KVTILT_BASELINE avx512
#elif defined(__AVX2__)
#define KVTILT_BASELINE avx2
#elif defined(__AVX__)
#define KVTILT_BASELINE avx
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
