// SPDX-License-Identifier: MIT
#include "every_kernel.cuh"

kvtilt::cuda::EveryKernel<kvtilt::cuda::KernelsFor<192>> every_kernel;
