// SPDX-License-Identifier: MIT
/// The CPU kernels for all widths, compiled once in all_formats.cpp, because they take seconds to
/// compile. kvtilt_test includes this header for tests that share them.
#pragma once

#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/quant/format.hpp>

namespace kvtilt::test {

/// Lists that leave out some widths, or all but the 16 bits of the tail.
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

/// The kernels of Isa::AvxVnni compiled for AVX-512's encoding of the same dot product, for
/// machines that have only that; null on all others, and where the build knows of AVX-VNNI.
const cpu::Kernels* avx_vnni_by_avx512();

}  // namespace kvtilt::test
