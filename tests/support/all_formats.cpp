// SPDX-License-Identifier: MIT
#include "support/all_formats.hpp"

template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);

#if KVTILT_X86
KVTILT_TARGET_BEGIN("avx512f,avx512vl,avx512vnni,avx2,fma,f16c")
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace avx_vnni_by_avx512 {
// clang-format off
#include <kvtilt/cpu/dot_add_avx_vnni.inl>
#include <kvtilt/cpu/simd_avx2.inl>
#include <kvtilt/cpu/generic.inl>
// clang-format on
}  // namespace avx_vnni_by_avx512
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif

namespace kvtilt::test {

const cpu::Kernels* avx_vnni_by_avx512() {
#if KVTILT_X86
  using Widths = std::integer_sequence<int, 1, 2, 3, 4, 5, 6, 7, 8, half_bits>;
  static constexpr cpu::Kernels table =
      cpu::avx_vnni_by_avx512::make_table<AllFormats>(Isa::AvxVnni, Widths{});
  if (check_isa(Isa::Avx512).ok()) return &table;
#endif
  return nullptr;
}

}  // namespace kvtilt::test
