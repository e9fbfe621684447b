// SPDX-License-Identifier: MIT
#include "support/all_formats.hpp"

template const kvtilt::cpu::Kernels* kvtilt::cpu::kernels<kvtilt::AllFormats>(kvtilt::Isa);
