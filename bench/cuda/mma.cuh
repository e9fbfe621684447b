// SPDX-License-Identifier: MIT
/// The tensor core instruction that the probes measure.
#pragma once

#include <cstdint>

namespace kvtilt::bench {

/// sums += a * b: a 16x16 by a 16x8 matrix of fp16, accumulated in float32 (mma.m16n8k16).
__device__ inline void mma(float (&sums)[4], const std::uint32_t (&a)[4],
                           const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace kvtilt::bench
