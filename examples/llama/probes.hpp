// SPDX-License-Identifier: MIT
// Measuring what each tensor costs: one at a time is lowered, everything else stays as it is.
#pragma once

#include <kvtilt/plan/divergence_losses.hpp>

#include "divergence.hpp"

#include <vector>

namespace llama {

/// The mean divergence of every (layer, kv head or all of them, tensor, format of `formats`) alone
/// in a cache of 16 bits.
std::vector<kvtilt::Divergence> measure_probes(const Model& model,
                                               const std::vector<std::vector<int>>& pieces,
                                               const kvtilt::FormatChoices& formats,
                                               kvtilt::RecipePer per,
                                               const DivergenceOptions& options);

}  // namespace llama
