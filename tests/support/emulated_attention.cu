// SPDX-License-Identifier: MIT
// The attention kernels of the tests that run on the emulated runtime.
#include "support/emulated_kernels.hpp"
#include "support/some_kernels.hpp"

kvtilt::test::EmulatedKernels kvtilt::test::emulated_attention() {
  return emulated_attention(SomeKernels{});
}
