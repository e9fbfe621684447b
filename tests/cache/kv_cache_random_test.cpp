// SPDX-License-Identifier: MIT
// Random programs of everything a cache can be asked, on many sequences and shapes, against a model
// that re-derives sealing, groups and windows on its own and attends in float64. KVTILT_FULL=1 runs
// ten times as many; KVTILT_PROGRAMS says how many; KVTILT_SEED where to start, alone: that one.
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
#elif defined(__clang__)  // -fsanitize=undefined cannot be asked for
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
