// SPDX-License-Identifier: MIT
/// Measures the rate of vpdpbusd, the instruction that bounds integer attention on AVX-512.
#pragma once

namespace kvtilt::bench {

/// 512-bit vpdpbusd per second on one core, the best of several tries; 0 if the CPU has none.
double vnni_rate();

}  // namespace kvtilt::bench
