// SPDX-License-Identifier: MIT
// Random programs of all calls of a device cache, on many sequences and shapes, compared byte for
// byte with a CPU cache that gets the same calls, with a model of which sequence holds which page,
// and with attention in float64. KVTILT_FULL=1, KVTILT_PROGRAMS and KVTILT_SEED: see
// run_programs().
#include "cache_program_run.cuh"
#include "support/run_programs.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

TEST(DeviceKVCacheProgramRandom, DoesWhatTheCpuDoesAfterEveryStep) {
  KVTILT_SKIP_WITHOUT_GPU();
  run_programs(
      30, [](std::uint64_t seed) { return random_cache_program(seed, 60); },
      [](std::uint64_t seed, const std::vector<CacheStep>& steps) {
        return CacheProgramRun(seed).play(steps);
      });
}

}  // namespace
}  // namespace kvtilt::test
