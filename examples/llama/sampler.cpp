// SPDX-License-Identifier: MIT
#include "sampler.hpp"

#include "metrics.hpp"

#include <cmath>

namespace llama {

int Sampler::choose(std::span<const float> logits) {
  const int likeliest = argmax(logits);
  if (temperature_ == 0) return likeliest;
  const double largest = logits[static_cast<std::size_t>(likeliest)];
  weights_.resize(logits.size());
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = std::exp((logits[i] - largest) / temperature_);
    sum += weights_[i];
  }
  // Not std::discrete_distribution, whose use of the generator differs between standard libraries.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    left -= weights_[i];
    if (left < 0) return static_cast<int>(i);
  }
  return likeliest;  // rounding errors left a remainder behind the last token
}

}  // namespace llama
