// SPDX-License-Identifier: MIT
// Chooses the next token.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace llama {

class Sampler {
 public:
  /// temperature 0 always takes the most likely token; 1 samples the model's own distribution.
  Sampler(double temperature, std::uint64_t seed) : temperature_(temperature), random_(seed) {}

  /// The same seed and logits give the same tokens on every machine.
  int choose(std::span<const float> logits);

 private:
  double temperature_;
  std::mt19937_64 random_;
  std::vector<double> weights_;  // [vocab]
};

}  // namespace llama
