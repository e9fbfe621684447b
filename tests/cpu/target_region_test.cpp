// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/target_region.hpp>

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace kvtilt {
namespace {

#define KVTILT_TEST_TEXT(x) #x
#define KVTILT_TEST_EXPAND(x) KVTILT_TEST_TEXT(x)

TEST(TargetRegion, TagNamesVersionBaselineAndMath) {
  std::string expected = "abi_" + std::to_string(KVTILT_VERSION_MAJOR) + "_" +
                         std::to_string(KVTILT_VERSION_MINOR) + "_";
#if defined(__AVX512F__)
  expected += "avx512";
#elif defined(__AVX2__)
  expected += "avx2";
#elif defined(__AVX__)
  expected += "avx";
#else
  expected += "base";
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
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    GTEST_SKIP() << "this machine does not run AVX2";
  float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  double_all(values);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(values[i], static_cast<float>(2 * i + 2));
}
#endif

}  // namespace
}  // namespace kvtilt
