// SPDX-License-Identifier: MIT
// SIMD primitives that must give the specification's bits, called outside of kernels.
#include <kvtilt/cpu/kernels.hpp>

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

// Defines one function for each namespace of primitives, inside its target region.
#define RECIPROCALS(name)                                      \
  static void reciprocals_##name(const float* x, float* out) { \
    using namespace kvtilt::cpu::name;                         \
    store(out, reciprocal(load(x)));                           \
  }

#if KVTILT_HAS_SCALAR
RECIPROCALS(scalar)
#endif
#if KVTILT_HAS_AVX2
KVTILT_TARGET_BEGIN("avx2,fma,f16c")
RECIPROCALS(avx2)
KVTILT_TARGET_END
#endif
#if KVTILT_HAS_AVX512
KVTILT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
RECIPROCALS(avx512)
KVTILT_TARGET_END
#endif
#if KVTILT_HAS_NEON
RECIPROCALS(neon)
#endif

namespace kvtilt {
namespace {

struct Primitives {
  Isa isa;
  void (*reciprocals)(const float* x, float* out);
};

constexpr Primitives all_primitives[] = {
#if KVTILT_HAS_SCALAR
    {Isa::Scalar, &reciprocals_scalar},
#endif
#if KVTILT_HAS_AVX2
    {Isa::Avx2, &reciprocals_avx2},
#endif
#if KVTILT_HAS_AVX512
    {Isa::Avx512, &reciprocals_avx512},
#endif
#if KVTILT_HAS_NEON
    {Isa::Neon, &reciprocals_neon},
#endif
};

TEST(SimdExhaustive, EveryReciprocalIsThatOfTheSpecification) {
  for (const Primitives& primitives : all_primitives) {
    if (!is_runnable(primitives.isa)) continue;
    for (int first = 0; first < 0x7c00; first += 16) {
      float x[16];
      float out[16];
      for (int i = 0; i < 16; ++i) x[i] = to_float(F16{static_cast<std::uint16_t>(first + i)});
      primitives.reciprocals(x, out);
      for (int i = 0; i < 16; ++i)
        ASSERT_EQ(
            std::bit_cast<std::uint32_t>(out[i]),
            std::bit_cast<std::uint32_t>(reciprocal(F16{static_cast<std::uint16_t>(first + i)})))
            << to_string(primitives.isa) << ' ' << first + i;
    }
  }
}

}  // namespace
}  // namespace kvtilt
