// SPDX-License-Identifier: MIT
#include "every_kernel.cuh"

kvtilt::cuda::EveryKernel<kvtilt::cuda::KernelsFor<64>> every_kernel;
