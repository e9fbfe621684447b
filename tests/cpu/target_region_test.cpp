// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/cpu/target_region.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace kvtilt {
namespace {

#define KVTILT_TEST_TEXT(x) #x
#define KVTILT_TEST_EXPAND(x) KVTILT_TEST_TEXT(x)

TEST(TargetRegion, TagNamesVersionBaselineAndMath) {
  std::string expected = "abi_" + std::to_string(KVTILT_VERSION_MAJOR) + "_" +
                         std::to_string(KVTILT_VERSION_MINOR) + "_";
#if defined(__x86_64__)
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
  expected += "avx512_vnni";
#elif defined(__AVX512F__)
  expected += "avx512";
#elif defined(__AVXVNNI__)
  expected += "avx_vnni";
#elif defined(__AVX2__)
  expected += "avx2";
#elif defined(__AVX__)
  expected += "avx";
#else
  expected += "base";
#endif
#else
#if defined(__ARM_FEATURE_SVE2)
  expected += "sve2";
#elif defined(__ARM_FEATURE_SVE)
  expected += "sve";
#elif !defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
  expected += "base";
#endif
#if defined(__ARM_FEATURE_SVE) && defined(__ARM_FEATURE_DOTPROD)
  expected += "_";
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
  expected += "i8mm";
#elif defined(__ARM_FEATURE_DOTPROD)
  expected += "dotprod";
#endif
#endif
#if defined(__FAST_MATH__)
  expected += "_fast";
#else
  expected += "_strict";
#endif
  EXPECT_EQ(std::string(KVTILT_TEST_EXPAND(KVTILT_ABI)), expected);
}

#if KVTILT_X86
KVTILT_TARGET_BEGIN("avx2,fma,f16c")
inline void double_all(float* values) {
  const __m256 x = _mm256_loadu_ps(values);
  _mm256_storeu_ps(values, _mm256_fmadd_ps(x, _mm256_set1_ps(2.0f), _mm256_setzero_ps()));
}
KVTILT_TARGET_END

TEST(TargetRegion, CompilesWhatTheCommandLineDoesNotName) {
  if (!is_runnable(Isa::Avx2)) GTEST_SKIP() << "this machine does not run AVX2";
  float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  double_all(values);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(values[i], static_cast<float>(2 * i + 2));
}
#elif KVTILT_ARM64
KVTILT_TARGET_BEGIN(KVTILT_ARM_FEATURE("dotprod"))
inline void square_and_add(const std::int8_t* bytes, std::int32_t* sums) {
  const int8x16_t x = vld1q_s8(bytes);
  int32x4_t sum = vld1q_s32(sums);
#if defined(__clang__) && __clang_major__ < 16
  __asm__("sdot %0.4s, %1.16b, %1.16b" : "+w"(sum) : "w"(x));
#else
  sum = vdotq_s32(sum, x, x);
#endif
  vst1q_s32(sums, sum);
}
KVTILT_TARGET_END

TEST(TargetRegion, CompilesWhatTheCommandLineDoesNotName) {
  if (!is_runnable(Isa::NeonDotprod)) GTEST_SKIP() << "this machine has no dot products";
  std::int8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::int8_t>(i - 8);
  std::int32_t sums[4] = {1, 2, 3, 4};
  square_and_add(bytes, sums);
  const std::int32_t expected[] = {175, 32, 17, 130};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(sums[i], expected[i]);
}
#endif

}  // namespace
}  // namespace kvtilt
