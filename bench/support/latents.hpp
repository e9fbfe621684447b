// SPDX-License-Identifier: MIT
/// Latents of multi-head latent attention, with the dimensions of DeepSeek-V2 and V3.
#pragma once

#include "support/caches.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::bench {

inline constexpr int latent_rank = 512;
inline constexpr int latent_dim = latent_rank + 64;
/// Latents repeat after so many tokens.
inline constexpr std::int64_t latent_period = 4096;
/// That of a model whose heads have 128 + 64 channels.
inline constexpr float latent_scale = 0.0721688f;

/// One period, [latent_period, 1, latent_dim]: normal, each channel with a size and a bias of its own.
const std::vector<float>& latents();

/// Queries [1, heads, latent_dim].
std::vector<float> latent_queries(int heads);

/// Whether a cache's values are in its keys, or stored a second time, in the same format.
enum class LatentValues { InKeys, Apart };

/// A cache with one sequence of `tokens` tokens, all in sealed pages.
struct FilledLatents {
  FilledLatents(const std::string& recipe, std::int64_t tokens, LatentValues values);

  KVCache cache;
  SequenceId sequence;
};

/// Returns the same cache in every call, because benches run in random order.
FilledLatents& filled_latents(const std::string& recipe, std::int64_t tokens, LatentValues values);

/// Attention of latent_queries() over `tokens` unquantized latents, a multiple of latent_period:
/// [heads, latent_rank], in float64.
const std::vector<double>& latent_reference(int heads, std::int64_t tokens);

}  // namespace kvtilt::bench
