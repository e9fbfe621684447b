// SPDX-License-Identifier: MIT
// Primitives that must give the bits of the specification, called without a kernel around them.
#include <kvtilt/cpu/kernels.hpp>

#include "support/isas.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>

#if KVTILT_HAS_SCALAR
static void reciprocals_scalar(const float* x, float* out) {
  using namespace kvtilt::cpu::scalar;
  store(out, reciprocal(load(x)));
}
#endif
#if KVTILT_HAS_AVX2
KVTILT_TARGET_BEGIN("avx2,fma,f16c")
static void reciprocals_avx2(const float* x, float* out) {
  using namespace kvtilt::cpu::avx2;
  store(out, reciprocal(load(x)));
}
KVTILT_TARGET_END
#endif
#if KVTILT_HAS_AVX512
KVTILT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
static void reciprocals_avx512(const float* x, float* out) {
  using namespace kvtilt::cpu::avx512;
  store(out, reciprocal(load(x)));
}
KVTILT_TARGET_END
#endif

namespace kvtilt {
namespace {

void reciprocals(Isa isa, const float* x, float* out) {
#if KVTILT_HAS_SCALAR
  if (isa == Isa::Scalar) reciprocals_scalar(x, out);
#endif
#if KVTILT_HAS_AVX2
  if (isa == Isa::Avx2) reciprocals_avx2(x, out);
#endif
#if KVTILT_HAS_AVX512
  if (isa == Isa::Avx512) reciprocals_avx512(x, out);
#endif
}

TEST(SimdExhaustive, EveryReciprocalIsThatOfTheSpecification) {
  for (const Isa isa : test::usable_isas())
    for (int first = 0; first < 0x7c00; first += 16) {
      float x[16];
      float out[16];
      for (int i = 0; i < 16; ++i) x[i] = to_float(F16{static_cast<std::uint16_t>(first + i)});
      reciprocals(isa, x, out);
      for (int i = 0; i < 16; ++i)
        ASSERT_EQ(
            std::bit_cast<std::uint32_t>(out[i]),
            std::bit_cast<std::uint32_t>(reciprocal(F16{static_cast<std::uint16_t>(first + i)})))
            << to_string(isa) << ' ' << first + i;
    }
}

}  // namespace
}  // namespace kvtilt
