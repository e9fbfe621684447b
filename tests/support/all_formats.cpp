// SPDX-License-Identifier: MIT
#include "support/all_formats.hpp"

namespace kvtilt::cpu {

template const Kernels* kernels<AllFormats>(Isa);
template const Kernels* kernels<test::FewFormats>(Isa);
template const Kernels* kernels<test::UnequalFormats>(Isa);
template const Kernels* kernels<test::NoFormats>(Isa);

}  // namespace kvtilt::cpu

#if KVTILT_X86 && !KVTILT_TEST_HAS_AVX_VNNI
KVTILT_TARGET_BEGIN("avx512f,avx512vl,avx512vnni,avx2,fma,f16c")
namespace kvtilt::cpu {
inline namespace KVTILT_ABI {
namespace avx_vnni_by_avx512 {
// clang-format off
#include <kvtilt/cpu/simd/avx_vnni_dot.inl>
#include <kvtilt/cpu/simd/avx2.inl>
#include <kvtilt/cpu/block_reader.inl>
#include <kvtilt/cpu/dot.inl>
// clang-format on
}  // namespace avx_vnni_by_avx512
}  // namespace KVTILT_ABI
}  // namespace kvtilt::cpu
KVTILT_TARGET_END
#endif

namespace kvtilt::test {

const cpu::Kernels* avx_vnni_by_avx512() {
#if KVTILT_X86 && !KVTILT_TEST_HAS_AVX_VNNI
  const cpu::Kernels* avx2 = cpu::kernels<AllFormats>(Isa::Avx2);
  if (avx2 == nullptr || !check_isa(Isa::Avx512).ok()) return nullptr;
  using Widths = std::integer_sequence<int, 1, 2, 3, 4, 5, 6, 7, 8>;
  static const cpu::Kernels table =
      cpu::avx_vnni_by_avx512::with_integer_dots<AllFormats>(*avx2, Isa::AvxVnni, Widths{});
  return &table;
#else
  return nullptr;
#endif
}

}  // namespace kvtilt::test
