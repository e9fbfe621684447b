// SPDX-License-Identifier: MIT
#include "support/latents.hpp"

#include "support/reference.hpp"

#include <cmath>
#include <cstddef>
#include <map>
#include <random>
#include <utility>

namespace kvtilt::bench {

const std::vector<float>& latents() {
  static const std::vector<float> rows = [] {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<std::pair<float, float>> channels;  // sizes and biases
    for (int channel = 0; channel < latent_dim; ++channel) {
      const float size = std::exp(0.5f * normal(random));
      channels.emplace_back(size, size * normal(random));
    }
    std::vector<float> made;
    for (std::int64_t token = 0; token < latent_period; ++token)
      for (const auto& [size, bias] : channels) made.push_back(bias + size * normal(random));
    return made;
  }();
  return rows;
}

std::vector<float> latent_queries(int heads) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<std::size_t>(heads * latent_dim));
  for (float& x : queries) x = normal(random);
  return queries;
}

const std::vector<double>& latent_reference(int heads, std::int64_t tokens) {
  static std::map<std::pair<int, std::int64_t>, std::vector<double>> known;
  std::vector<double>& out = known[{heads, tokens}];
  if (!out.empty()) return out;
  out.assign(static_cast<std::size_t>(heads * latent_rank), 0.0);
  const std::vector<float> queries = latent_queries(heads);
  const ReferenceShape shape{latent_dim, latent_rank, latent_dim,
                             static_cast<double>(latent_scale)};
  const float* rows = latents().data();
  for (int head = 0; head < heads; ++head)
    add_reference(
        shape, queries.data() + head * latent_dim, rows, rows,
        static_cast<std::size_t>(latent_period),
        [&](std::size_t) { return static_cast<double>(tokens / latent_period); },
        out.data() + head * latent_rank);
  return out;
}

}  // namespace kvtilt::bench
