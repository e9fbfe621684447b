// SPDX-License-Identifier: MIT
#include "rope.hpp"

#include <cmath>
#include <cstddef>
#include <numbers>

namespace llama {
namespace {

/// Llama 3.1: divides low frequencies by `factor`, keeps high ones, with a ramp in between.
double stretch_llama3(double frequency, const RopeScaling& scaling) {
  const double turns = scaling.original_context * frequency / (2 * std::numbers::pi);
  if (turns > scaling.high_freq_factor) return frequency;
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  const double kept =
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return kept * frequency + (1 - kept) * frequency / scaling.factor;
}

}  // namespace

Rope::Rope(const ModelConfig& config) : context_(config.context) {
  for (int i = 0; i < config.head_dim; i += 2) {
    double frequency = std::pow(config.rope_theta, -static_cast<double>(i) / config.head_dim);
    switch (config.rope_scaling.kind) {
      case RopeScaling::Kind::None:
        break;
      case RopeScaling::Kind::Linear:
        frequency /= config.rope_scaling.factor;
        break;
      case RopeScaling::Kind::Llama3:
        frequency = stretch_llama3(frequency, config.rope_scaling);
        break;
    }
    frequencies_.push_back(static_cast<float>(frequency));
  }
}

void Rope::angles(int position, float* cosines, float* sines) const {
  const bool trained = std::abs(position) < context_;
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    if (trained) {
      // In float32, as the models were trained: more precise angles would differ from theirs.
      const float angle = static_cast<float>(position) * frequencies_[i];
      cosines[i] = std::cos(angle);
      sines[i] = std::sin(angle);
    } else {
      // Where only a shifted context gets, float32 angles would be coarse.
      const double angle = static_cast<double>(position) * static_cast<double>(frequencies_[i]);
      cosines[i] = static_cast<float>(std::cos(angle));
      sines[i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Rope::rotate(int heads, const float* cosines, const float* sines, float* data) const {
  const std::size_t half = frequencies_.size();
  for (int head = 0; head < heads; ++head) {
    for (std::size_t i = 0; i < half; ++i) {
      const float x = data[i];
      const float y = data[i + half];
      data[i] = x * cosines[i] - y * sines[i];
      data[i + half] = y * cosines[i] + x * sines[i];
    }
    data += 2 * half;
  }
}

}  // namespace llama
