// SPDX-License-Identifier: MIT
#include "every_kernel.cuh"

kvtilt::cuda::EveryKernel<kvtilt::cuda::KernelsFor<96>> every_kernel;
