// SPDX-License-Identifier: MIT
/// Latents of multi-head latent attention, with the dimensions of DeepSeek-V2 and V3.
#pragma once

#include "support/caches.hpp"

#include <cstdint>
#include <vector>

namespace kvtilt::bench {

inline constexpr int latent_rank = 512;
inline constexpr int latent_dim = latent_rank + 64;
/// Latents repeat after so many tokens; caches hold a multiple of them.
inline constexpr std::int64_t latent_period = 4096;
/// That of a model whose heads have 128 + 64 channels.
inline constexpr float latent_scale = 0.0721688f;

/// One period, [latent_period, 1, latent_dim]: normal, each channel with a size and a bias of its own.
const std::vector<float>& latents();

/// Queries [1, heads, latent_dim].
std::vector<float> latent_queries(int heads);

/// Attention of latent_queries() over `tokens` unquantized latents, [heads, latent_rank], in float64.
const std::vector<double>& latent_reference(int heads, std::int64_t tokens);

}  // namespace kvtilt::bench
