// SPDX-License-Identifier: MIT
// Instantiates the CPU kernels for all widths; no other file compiles them.
#include "kvtilt_cache.hpp"

template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);
