// SPDX-License-Identifier: MIT
#include "every_kernel.cuh"

kvtilt::cuda::EveryKernel<kvtilt::cuda::KernelsFor<80>> every_kernel;
