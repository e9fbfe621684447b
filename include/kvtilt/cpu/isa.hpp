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
};
inline constexpr Isa all_isas[] = {Isa::Scalar, Isa::Avx2};

constexpr const char* to_string(Isa isa) { return isa == Isa::Avx2 ? "avx2" : "scalar"; }

// Kernels weaker than what the command line already guarantees are never chosen: not compiled.
#if KVTILT_X86
#define KVTILT_HAS_AVX2 1
#else
#define KVTILT_HAS_AVX2 0
#endif
#if KVTILT_HAS_AVX2 && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KVTILT_HAS_SCALAR 0
#else
#define KVTILT_HAS_SCALAR 1
#endif

/// Whether this build carries kernels for it.
constexpr bool is_compiled(Isa isa) {
  return isa == Isa::Avx2 ? KVTILT_HAS_AVX2 != 0 : KVTILT_HAS_SCALAR != 0;
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
  return f16c && __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
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
                             "KVTILT_ISA is '%.32s', expected scalar or avx2", name);
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
