// SPDX-License-Identifier: MIT
/// Which instruction set the kernels use: detected when a cache is created, forced by the
/// environment variable KVTILT_ISA or by CacheOptions::isa.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/status.hpp>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#if KVTILT_X86
#include <cpuid.h>
#endif

namespace kvtilt {

/// In order of preference, weakest first.
enum class Isa : std::uint8_t {
  Scalar,  ///< plain C++, vectorized by the compiler for the command line's baseline
  Avx2,    ///< x86-64 with AVX2, FMA and F16C
  Avx512,  ///< x86-64 with AVX-512 F, BW, DQ, VL and VNNI: Ice Lake, Zen 4 and later
};
inline constexpr Isa all_isas[] = {Isa::Scalar, Isa::Avx2, Isa::Avx512};

constexpr const char* to_string(Isa isa) {
  return isa == Isa::Avx512 ? "avx512" : isa == Isa::Avx2 ? "avx2" : "scalar";
}

// Kernels weaker than what the command line already guarantees are never chosen: not compiled.
#define KVTILT_HAS_AVX512 KVTILT_X86
#if KVTILT_X86 && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define KVTILT_HAS_AVX2 0
#else
#define KVTILT_HAS_AVX2 KVTILT_X86
#endif
#if KVTILT_X86 && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KVTILT_HAS_SCALAR 0
#else
#define KVTILT_HAS_SCALAR 1
#endif

/// Whether this build carries kernels for it.
constexpr bool is_compiled(Isa isa) {
  if (isa == Isa::Avx512) return KVTILT_HAS_AVX512 != 0;
  if (isa == Isa::Avx2) return KVTILT_HAS_AVX2 != 0;
  return isa == Isa::Scalar && KVTILT_HAS_SCALAR != 0;
}

/// Whether this processor and operating system run it.
inline bool is_runnable(Isa isa) {
  if (isa == Isa::Scalar) return true;
#if KVTILT_X86
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  // The builtins also ask whether the operating system saves the registers.
  if (!f16c || __builtin_cpu_supports("avx2") == 0 || __builtin_cpu_supports("fma") == 0)
    return false;
  return isa == Isa::Avx2 ||
         (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
          __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
          __builtin_cpu_supports("avx512vnni") != 0);
#else
  return false;
#endif
}

/// Ok, or Unsupported with the reason.
inline Status check_isa(Isa isa) {
  if (!is_compiled(isa))
    return Status::error(ErrorCode::Unsupported,
                         "instruction set %s is not in this build: the compiler flags either "
                         "target another architecture or already guarantee a stronger one",
                         to_string(isa));
  if (!is_runnable(isa))
    return Status::error(ErrorCode::Unsupported, "this machine does not run %s", to_string(isa));
  return {};
}

/// The instruction set a cache gets: `forced` if given, else KVTILT_ISA, else the best that runs.
/// A forced one that does not exist or run is an error, never a fallback.
inline Result<Isa> active_isa(std::optional<Isa> forced = std::nullopt) {
  if (!forced) {
    const char* name = std::getenv("KVTILT_ISA");
    if (name != nullptr && *name != '\0') {
      for (const Isa isa : all_isas)
        if (std::string_view(name) == to_string(isa)) forced = isa;
      if (!forced)
        return Status::error(ErrorCode::InvalidArgument,
                             "KVTILT_ISA is '%.32s', expected scalar, avx2 or avx512", name);
    }
  }
  if (forced) {
    KVTILT_RETURN_IF_ERROR(check_isa(*forced));
    return *forced;
  }
  Isa best = Isa::Scalar;
  for (const Isa isa : all_isas)
    if (check_isa(isa).ok()) best = isa;
  KVTILT_RETURN_IF_ERROR(check_isa(best));
  return best;
}

}  // namespace kvtilt
