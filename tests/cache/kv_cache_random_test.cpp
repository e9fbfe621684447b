// SPDX-License-Identifier: MIT
// Random programs of all calls of a cache, on many sequences and shapes, against a model that
// derives sealing, groups and windows independently and attends in float64. KVTILT_FULL=1 runs ten
// times as many; KVTILT_PROGRAMS sets their number and KVTILT_SEED the first (alone: only this
// one).
#include "support/program_run.hpp"
#include "support/run_programs.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

using test::ProgramRun;
using test::Step;

// Unoptimized or instrumented, a program takes ten times as long.
#if !defined(__OPTIMIZE__)
constexpr int usual_programs = 60;
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int usual_programs = 60;
#elif defined(__clang__)  // covers -fsanitize=undefined, which no macro reports
constexpr int usual_programs = 60;
#else
constexpr int usual_programs = 840;  // 100,000 steps
#endif

TEST(KVCacheProgramRandom, FollowsTheModelAfterEveryStep) {
  constexpr int count = 120;
  test::run_programs(
      usual_programs, [](std::uint64_t seed) { return test::random_program(seed, count); },
      [](std::uint64_t seed, const std::vector<Step>& steps) {
        return ProgramRun(seed).play(steps);
      });
}

}  // namespace
}  // namespace kvtilt
