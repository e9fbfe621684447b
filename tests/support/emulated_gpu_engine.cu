// SPDX-License-Identifier: MIT
// examples/gpu_engine.cu with the attention kernels that the emulated runtime runs for it.
#include "../../examples/gpu_engine.cu"

#include "support/emulated_kernels.hpp"

kvtilt::test::EmulatedKernels kvtilt::test::emulated_attention() {
  return emulated_attention(Kernels{});
}
