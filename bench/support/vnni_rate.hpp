// SPDX-License-Identifier: MIT
/// The rate of the instruction that bounds integer attention on AVX-512.
#pragma once

namespace kvtilt::bench {

/// 512-bit vpdpbusd a second on one core, the fastest of several tries; 0 where there is none.
double vnni_rate();

}  // namespace kvtilt::bench
