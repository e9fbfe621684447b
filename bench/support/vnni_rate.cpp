// SPDX-License-Identifier: MIT
#include "support/vnni_rate.hpp"

#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/cpu/target_region.hpp>

#include <algorithm>
#include <chrono>

namespace kvtilt::bench {

#if KVTILT_X86
KVTILT_TARGET_BEGIN("avx512f,avx512vnni")
namespace {

/// Twelve independent sums: more than the instruction's latency times its rate on any core.
constexpr int chains = 12;

void add_products(int rounds) {
  __m512i sums[chains] = {};
  const __m512i codes = _mm512_set1_epi32(0x01020304);
  for (int round = 0; round < rounds; ++round) {
    KVTILT_UNROLL(12)
    for (int chain = 0; chain < chains; ++chain) {
      sums[chain] = _mm512_dpbusd_epi32(sums[chain], codes, codes);
      __asm__ volatile("" : "+v"(sums[chain]));
    }
  }
}

}  // namespace
KVTILT_TARGET_END
#endif

double vnni_rate() {
  double best = 0;
#if KVTILT_X86
  if (!is_runnable(Isa::Avx512)) return 0;
  constexpr int rounds = 200000;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    add_products(rounds);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(rounds) * chains / took.count());
  }
#endif
  return best;
}

}  // namespace kvtilt::bench
