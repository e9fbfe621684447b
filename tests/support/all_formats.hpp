// SPDX-License-Identifier: MIT
/// Every kernel for every width takes seconds to compile. Tests that are built with this header
/// (kvtilt_test includes it for them) share the one copy of all_formats.cpp.
#pragma once

#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/quant/format.hpp>

extern template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);
