// SPDX-License-Identifier: MIT
// The CPU's kernels for all widths: of all files this one alone compiles them.
#include "kvtilt_cache.hpp"

template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);
