// SPDX-License-Identifier: MIT
/// Compiles the generic kernels (*.inl) once per instruction set and returns their tables. To add an
/// instruction set, write a file of primitives in simd/ (or a *_dot.inl, if it shares the others), a
/// region here and an enumerator in isa.hpp.
#pragma once

#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/cpu/target_region.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/fit.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// Includes in the order of their dependencies.
// clang-format off
#if KVTILT_HAS_SCALAR
// Not unrolled: its "registers" are arrays anyway, and compiling would take five seconds, not two.
#pragma push_macro("KVTILT_UNROLL")
#undef KVTILT_UNROLL
#define KVTILT_UNROLL(count)
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace scalar {
#include <kvtilt/cpu/simd/scalar.inl>
#include <kvtilt/cpu/generic.inl>
}  // namespace scalar
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
#pragma pop_macro("KVTILT_UNROLL")
#endif

#if KVTILT_HAS_AVX2 || KVTILT_HAS_AVX_VNNI
KVTILT_TARGET_BEGIN("avx2,fma,f16c")
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace avx2 {
#include <kvtilt/cpu/simd/avx2_dot.inl>
#include <kvtilt/cpu/simd/avx2.inl>
#include <kvtilt/cpu/generic.inl>
}  // namespace avx2
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif

#if KVTILT_HAS_AVX_VNNI
KVTILT_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace avx_vnni {  // differs from avx2 in integer dot products alone
#include <kvtilt/cpu/simd/avx_vnni_dot.inl>
#include <kvtilt/cpu/simd/avx2.inl>
#include <kvtilt/cpu/block_reader.inl>
#include <kvtilt/cpu/dot.inl>
}  // namespace avx_vnni
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif

#if KVTILT_HAS_AVX512
KVTILT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace avx512 {
#include <kvtilt/cpu/simd/avx512.inl>
#include <kvtilt/cpu/generic.inl>
}  // namespace avx512
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif

#if KVTILT_HAS_NEON
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace neon {
#include <kvtilt/cpu/simd/neon_dot.inl>
#include <kvtilt/cpu/simd/neon.inl>
#include <kvtilt/cpu/generic.inl>
}  // namespace neon
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
#endif

#if KVTILT_HAS_NEON_DOTPROD
KVTILT_TARGET_BEGIN(KVTILT_ARM_FEATURE("dotprod"))
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace neon_dotprod {
#include <kvtilt/cpu/simd/neon_dotprod_dot.inl>
#include <kvtilt/cpu/simd/neon.inl>
#include <kvtilt/cpu/generic.inl>
}  // namespace neon_dotprod
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif
// clang-format on

namespace kvtilt::cpu {
inline namespace KVTILT_ABI {

/// The kernels of `isa` for the widths of a list; null if this build has none (check_isa says so).
///
/// A file that makes a KVCache takes 20 s to compile with all widths, 3 s without (g++ 12, -O2,
/// x86-64). An engine of several such files declares the kernels in a header, outside of namespaces,
///
///     extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);
///
/// and has the same line without `extern` in one file.
template <class FormatList>
const Kernels* kernels(Isa isa) {
  using Widths = std::integer_sequence<int, 1, 2, 3, 4, 5, 6, 7, 8, half_bits>;
#if KVTILT_HAS_NEON_DOTPROD
  static constexpr Kernels neon_dotprod_table =
      neon_dotprod::make_table<FormatList>(Isa::NeonDotprod, Widths{});
  if (isa == Isa::NeonDotprod) return &neon_dotprod_table;
#endif
#if KVTILT_HAS_NEON
  static constexpr Kernels neon_table = neon::make_table<FormatList>(Isa::Neon, Widths{});
  if (isa == Isa::Neon) return &neon_table;
#endif
#if KVTILT_HAS_AVX512
  static constexpr Kernels avx512_table = avx512::make_table<FormatList>(Isa::Avx512, Widths{});
  if (isa == Isa::Avx512) return &avx512_table;
#endif
#if KVTILT_HAS_AVX_VNNI
  static constexpr Kernels avx_vnni_table = avx_vnni::with_integer_dots<FormatList>(
      avx2::make_table<FormatList>(Isa::Avx2, Widths{}), Isa::AvxVnni, Widths{});
  if (isa == Isa::AvxVnni) return &avx_vnni_table;
#endif
#if KVTILT_HAS_AVX2
  static constexpr Kernels avx2_table = avx2::make_table<FormatList>(Isa::Avx2, Widths{});
  if (isa == Isa::Avx2) return &avx2_table;
#endif
#if KVTILT_HAS_SCALAR
  static constexpr Kernels scalar_table = scalar::make_table<FormatList>(Isa::Scalar, Widths{});
  if (isa == Isa::Scalar) return &scalar_table;
#endif
  return nullptr;
}

}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
