// SPDX-License-Identifier: MIT
/// The attention kernels that tests on a device and the emulated runtime share: few, because each
/// is compiled for both.
#pragma once

#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/cuda/attention/generic_page.hpp>

namespace kvtilt::test {

using SomeKernels = cuda::AttendKernels<cuda::PageTraits<4, 2, 64>, cuda::GenericTraits<64>>;

}  // namespace kvtilt::test
