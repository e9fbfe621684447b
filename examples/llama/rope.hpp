// SPDX-License-Identifier: MIT
// Rotary position embedding in the order of Hugging Face checkpoints: channel i of a head is paired
// with channel i + head_dim / 2.
#pragma once

#include "config.hpp"

#include <vector>

namespace llama {

class Rope {
 public:
  explicit Rope(const ModelConfig& config);

  /// Fills cosines and sines [head_dim / 2] of one position; a negative one turns back.
  void angles(int position, float* cosines, float* sines) const;

  /// Radians per position, [head_dim / 2].
  [[nodiscard]] const std::vector<float>& frequencies() const { return frequencies_; }

  /// Rotates each of `heads` consecutive heads [head_dim] in place.
  void rotate(int heads, const float* cosines, const float* sines, float* data) const;

 private:
  std::vector<float> frequencies_;
  int context_;
};

}  // namespace llama
