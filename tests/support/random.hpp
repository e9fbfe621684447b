// SPDX-License-Identifier: MIT
/// Random numbers that are the same with every standard library and compiler flag.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace kvtilt::test {

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// An integer from 0 to count - 1.
  int below(int count) {
    return static_cast<int>((next() >> 32) * static_cast<std::uint64_t>(count) >> 32);
  }

  int between(int first, int last) { return first + below(last - first + 1); }

  bool chance(int one_in) { return below(one_in) == 0; }

  /// In (0, 1).
  double uniform() { return (static_cast<double>(next() >> 12) + 0.5) * 0x1p-52; }

  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

  /// One of 4096 samples of a normal distribution: normal() would take a tenth of the
  /// time of all tests, and more than a third of some.
  double sampled_normal() {
    static const std::array<double, 4096> samples = [] {
      Random own(0);
      std::array<double, 4096> table{};
      for (double& x : table) x = own.normal();
      return table;
    }();
    return samples[next() >> 52];
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvtilt::test
