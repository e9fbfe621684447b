// SPDX-License-Identifier: MIT
// Random programs of everything a cache can be asked, on many sequences and shapes, against a model
// that re-derives sealing, groups and windows on its own and attends in float64. KVTILT_FULL=1 runs
// ten times as many; KVTILT_PROGRAMS says how many; KVTILT_SEED where to start, alone: that one.
#include "support/program_run.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::ProgramRun;
using test::Step;

void check_program(std::uint64_t seed) {
  constexpr int count = 120;
  std::vector<Step> steps = test::random_program(seed, count);
  if (ProgramRun(seed).play(steps).empty()) return;
  steps = test::shrink(
      steps, [&](const std::vector<Step>& fewer) { return !ProgramRun(seed).play(fewer).empty(); });
  std::string text;
  for (const Step& step : steps) text += "  " + to_string(step) + '\n';
  ADD_FAILURE() << "KVTILT_SEED=" << seed << ": " << ProgramRun(seed).play(steps) << '\n' << text;
}

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
  const char* seed = std::getenv("KVTILT_SEED");
  const char* wanted = std::getenv("KVTILT_PROGRAMS");
  const int programs = wanted != nullptr                       ? std::atoi(wanted)
                       : seed != nullptr                       ? 1
                       : std::getenv("KVTILT_FULL") != nullptr ? 10 * usual_programs
                                                               : usual_programs;
  const std::uint64_t first = seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0;
  for (int i = 0; i < programs && !testing::Test::HasFailure(); ++i)
    check_program(first + static_cast<std::uint64_t>(i));
}

}  // namespace
}  // namespace kvtilt
