// SPDX-License-Identifier: MIT
/// Every kernel for every width takes seconds to compile. Tests that are built with this header
/// (kvtilt_test includes it for them) share the one copy of all_formats.cpp.
#pragma once

#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/quant/format.hpp>

extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);

namespace kvtilt::test {

/// The kernels of Isa::AvxVnni in the encoding of AVX-512, for machines that have the same dot
/// product in that form alone; null on all others.
const cpu::Kernels* avx_vnni_by_avx512();

}  // namespace kvtilt::test
