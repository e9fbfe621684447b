// SPDX-License-Identifier: MIT
// Measures the divergence that each tensor's format causes alone.
#pragma once

#include <kvtilt/plan/divergence_losses.hpp>

#include "divergence.hpp"

#include <vector>

namespace llama {

/// Measures the mean divergence for every (layer, kv head or all of them, tensor, format of
/// `formats`) if this tensor alone is quantized in a 16-bit cache.
std::vector<kvtilt::Divergence> measure_probes(const Model& model,
                                               const std::vector<std::vector<int>>& pieces,
                                               const kvtilt::FormatChoices& formats,
                                               kvtilt::RecipePer per,
                                               const DivergenceOptions& options);

}  // namespace llama
