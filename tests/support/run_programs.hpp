// SPDX-License-Identifier: MIT
/// Runs programs drawn from seeds, and reduces a failing one to the steps that the failure needs.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace kvtilt::test {

/// Drops the steps that the failure does not need. `fails` runs a program.
template <class Step, class Fails>
std::vector<Step> shrink(std::vector<Step> steps, Fails fails) {
  for (std::size_t chunk = steps.size() / 2; chunk > 0; chunk /= 2)
    for (std::size_t at = 0; at + chunk <= steps.size();) {
      std::vector<Step> fewer = steps;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                  fewer.begin() + static_cast<std::ptrdiff_t>(at + chunk));
      if (fails(fewer))
        steps = fewer;
      else
        at += chunk;
    }
  return steps;
}

/// draw(seed) makes a program, a vector of steps; play(seed, steps) returns what went wrong in it,
/// or an empty string. Environment: KVTILT_FULL=1 runs ten times `usual` programs, KVTILT_PROGRAMS
/// sets their number, KVTILT_SEED the first seed, and if only that is set, it runs that one
/// program.
template <class Draw, class Play>
void run_programs(int usual, Draw draw, Play play) {
  const char* seed = std::getenv("KVTILT_SEED");
  const char* wanted = std::getenv("KVTILT_PROGRAMS");
  const int programs = wanted != nullptr                       ? std::atoi(wanted)
                       : seed != nullptr                       ? 1
                       : std::getenv("KVTILT_FULL") != nullptr ? 10 * usual
                                                               : usual;
  const std::uint64_t first = seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0;
  for (int i = 0; i < programs && !testing::Test::HasFailure(); ++i) {
    const std::uint64_t own = first + static_cast<std::uint64_t>(i);
    auto steps = draw(own);
    if (play(own, steps).empty()) continue;
    steps = shrink(steps, [&](const auto& fewer) { return !play(own, fewer).empty(); });
    std::string text;
    for (const auto& step : steps) text += "  " + to_string(step) + '\n';
    ADD_FAILURE() << "KVTILT_SEED=" << own << ": " << play(own, steps) << '\n' << text;
  }
}

}  // namespace kvtilt::test
