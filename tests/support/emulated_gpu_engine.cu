// SPDX-License-Identifier: MIT
// examples/gpu_engine.cu, with what the emulated runtime runs for its kernels of attention.
#include "../../examples/gpu_engine.cu"

#include "support/emulated_kernels.hpp"

kvtilt::test::EmulatedKernels kvtilt::test::emulated_attention() {
  return emulated_attention(Kernels{});
}
