// SPDX-License-Identifier: MIT
/// Every kernel for every width takes seconds to compile. Tests that are built with this header
/// (kvtilt_test includes it for them) share the one copy of all_formats.cpp.
#pragma once

#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/quant/format.hpp>

namespace kvtilt::test {

/// Lists that leave out some widths, or all but the tail's.
using FewFormats = Formats<Keys<4>, Values<2>>;
using UnequalFormats = Formats<Keys<8, 3>, Values<3, 16>>;
using NoFormats = Formats<Keys<>, Values<>>;

}  // namespace kvtilt::test

namespace kvtilt::cpu {

extern template const Kernels* kernels<AllFormats>(Isa);
extern template const Kernels* kernels<test::FewFormats>(Isa);
extern template const Kernels* kernels<test::UnequalFormats>(Isa);
extern template const Kernels* kernels<test::NoFormats>(Isa);

}  // namespace kvtilt::cpu

namespace kvtilt::test {

/// The kernels of Isa::AvxVnni in the encoding of AVX-512, for machines that have the same dot
/// product in that form alone; null on all others.
const cpu::Kernels* avx_vnni_by_avx512();

}  // namespace kvtilt::test
