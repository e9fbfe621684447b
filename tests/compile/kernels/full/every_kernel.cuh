// SPDX-License-Identifier: MIT
/// Instantiates all kernels of a list, for decode and for prefill.
#pragma once

#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>

namespace kvtilt::cuda {

template <class List>
struct EveryKernel;
template <class... Pages>
struct EveryKernel<AttendKernels<Pages...>> {
  void (*decode[sizeof...(Pages)])(AttendArguments) = {&attend_kernel<Pages>...};
  void (*prefill[sizeof...(Pages)])(PrefillArguments) = {&attend_prefill_kernel<Pages>...};
};

}  // namespace kvtilt::cuda
