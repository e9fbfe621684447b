// SPDX-License-Identifier: MIT
/// Selects the kernels' instruction set: detected when a cache is created, unless the environment
/// variable KVTILT_ISA or CacheOptions::isa forces one.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/status.hpp>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#if KVTILT_X86
#include <cpuid.h>
#elif KVTILT_ARM64 && defined(__linux__)
#include <sys/auxv.h>
#elif KVTILT_ARM64 && defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace kvtilt {

/// In order of preference, weakest first.
enum class Isa : std::uint8_t {
  Scalar,       ///< plain C++, vectorized by the compiler for the command line's baseline
  Avx2,         ///< x86-64 with AVX2, FMA and F16C
  AvxVnni,      ///< the same with AVX-VNNI: Alder Lake, Zen 5 and later
  Avx512,       ///< x86-64 with AVX-512 F, BW, DQ, VL and VNNI: Ice Lake, Zen 4 and later
  Neon,         ///< AArch64
  NeonDotprod,  ///< AArch64 with dot products of bytes: Neoverse N1, Cortex-A76, Apple M1 and later
};
inline constexpr Isa all_isas[] = {Isa::Scalar, Isa::Avx2, Isa::AvxVnni,
                                   Isa::Avx512, Isa::Neon, Isa::NeonDotprod};

constexpr const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::Avx2:
      return "avx2";
    case Isa::AvxVnni:
      return "avx_vnni";
    case Isa::Avx512:
      return "avx512";
    case Isa::Neon:
      return "neon";
    case Isa::NeonDotprod:
      return "neon_dotprod";
    default:
      return "scalar";
  }
}

// Kernels weaker than what the compiler flags guarantee are never chosen, and so not compiled.
#if KVTILT_X86 && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KVTILT_GUARANTEES_AVX2 1
#else
#define KVTILT_GUARANTEES_AVX2 0
#endif
#if KVTILT_GUARANTEES_AVX2 && defined(__AVXVNNI__)
#define KVTILT_GUARANTEES_AVX_VNNI 1
#else
#define KVTILT_GUARANTEES_AVX_VNNI 0
#endif
#if KVTILT_X86 && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define KVTILT_GUARANTEES_AVX512 1
#else
#define KVTILT_GUARANTEES_AVX512 0
#endif
#if KVTILT_ARM64 && defined(__ARM_FEATURE_DOTPROD)
#define KVTILT_GUARANTEES_DOTPROD 1
#else
#define KVTILT_GUARANTEES_DOTPROD 0
#endif

#define KVTILT_HAS_SCALAR (!KVTILT_GUARANTEES_AVX2 && !KVTILT_ARM64)
#define KVTILT_HAS_AVX2 (KVTILT_X86 && !KVTILT_GUARANTEES_AVX_VNNI && !KVTILT_GUARANTEES_AVX512)
#if __has_include(<avxvnniintrin.h>)  // compilers before g++ 11 and clang 12 know no AVX-VNNI
#define KVTILT_HAS_AVX_VNNI (KVTILT_X86 && !KVTILT_GUARANTEES_AVX512)
#else
#define KVTILT_HAS_AVX_VNNI 0
#endif
#define KVTILT_HAS_AVX512 KVTILT_X86
#define KVTILT_HAS_NEON (KVTILT_ARM64 && !KVTILT_GUARANTEES_DOTPROD)
#define KVTILT_HAS_NEON_DOTPROD KVTILT_ARM64

/// Whether this build has kernels for it.
constexpr bool is_compiled(Isa isa) {
  switch (isa) {
    case Isa::Scalar:
      return KVTILT_HAS_SCALAR;
    case Isa::Avx2:
      return KVTILT_HAS_AVX2;
    case Isa::AvxVnni:
      return KVTILT_HAS_AVX_VNNI;
    case Isa::Avx512:
      return KVTILT_HAS_AVX512;
    case Isa::Neon:
      return KVTILT_HAS_NEON;
    case Isa::NeonDotprod:
      return KVTILT_HAS_NEON_DOTPROD;
  }
  return false;
}

namespace detail {

#if KVTILT_X86
/// Reads CPUID itself: __builtin_cpu_supports() asks the compiler's runtime library, and Zig's says no
/// to every feature.
inline bool processor_runs(Isa isa) {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned basics = bit_OSXSAVE | bit_FMA | bit_F16C;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & basics) != basics) return false;
  // The registers that the operating system saves.
  unsigned saved = 0;
  asm volatile("xgetbv" : "=a"(saved), "=d"(edx) : "c"(0));
  constexpr unsigned ymm = 0x06;
  constexpr unsigned zmm = 0xe6;
  if ((saved & ymm) != ymm) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (ebx & bit_AVX2) == 0) return false;
  if (isa == Isa::Avx2) return true;
  if (isa == Isa::Avx512) {
    constexpr unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return (saved & zmm) == zmm && (ebx & avx512) == avx512 && (ecx & bit_AVX512VNNI) != 0;
  }
  constexpr unsigned avx_vnni = 1u << 4;
  return isa == Isa::AvxVnni && eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & avx_vnni) != 0;
}
#elif KVTILT_ARM64 && defined(__linux__)
inline bool processor_runs(Isa isa) {
  // HWCAP_ASIMDDP, written out because older versions of <asm/hwcap.h> lack it.
  if (isa == Isa::NeonDotprod) return (getauxval(AT_HWCAP) & 1u << 20) != 0;
  return isa == Isa::Neon;
}
#elif KVTILT_ARM64 && defined(__APPLE__)
inline bool has_feature(const char* name) {
  int present = 0;
  std::size_t bytes = sizeof present;
  return sysctlbyname(name, &present, &bytes, nullptr, 0) == 0 && present != 0;
}
inline bool processor_runs(Isa isa) {
  if (isa == Isa::NeonDotprod) return has_feature("hw.optional.arm.FEAT_DotProd");
  return isa == Isa::Neon;
}
#else
// Features cannot be detected here: only those that the compiler flags guarantee are used.
inline bool processor_runs(Isa isa) {
  return (isa == Isa::Neon && KVTILT_ARM64) ||
         (isa == Isa::NeonDotprod && KVTILT_GUARANTEES_DOTPROD);
}
#endif

}  // namespace detail

/// Whether this processor and operating system can run it.
inline bool is_runnable(Isa isa) { return isa == Isa::Scalar || detail::processor_runs(isa); }

/// Ok, or Unsupported with the reason.
inline Status check_isa(Isa isa) {
  if (isa > Isa::NeonDotprod)
    return Status::error(ErrorCode::Unsupported, "%d is no instruction set", static_cast<int>(isa));
  if (!is_compiled(isa))
    return Status::error(ErrorCode::Unsupported,
                         "instruction set %s is not in this build: the compiler does not know it, "
                         "or its flags target another architecture or already guarantee a "
                         "stronger one",
                         to_string(isa));
  if (!is_runnable(isa))
    return Status::error(ErrorCode::Unsupported, "this machine does not run %s", to_string(isa));
  return {};
}

/// The instruction set that a cache uses: `forced` if given, else KVTILT_ISA, else the best that runs.
/// If one is forced that this build lacks or the machine cannot run, this fails; there is no fallback.
inline Result<Isa> active_isa(std::optional<Isa> forced = std::nullopt) {
  if (!forced) {
    const char* name = std::getenv("KVTILT_ISA");
    if (name != nullptr && *name != '\0') {
      for (const Isa isa : all_isas)
        if (std::string_view(name) == to_string(isa)) forced = isa;
      if (!forced)
        return Status::error(
            ErrorCode::InvalidArgument,
            "KVTILT_ISA is '%.32s', expected scalar, avx2, avx_vnni, avx512, neon or neon_dotprod",
            name);
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
