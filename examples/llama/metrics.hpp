// SPDX-License-Identifier: MIT
// How far one model's predictions are from another's. All of it in float64, from float32 logits.
#pragma once

#include <span>
#include <vector>

namespace llama {

/// log(sum(exp(logits))), natural. NaN or infinity in, NaN or infinity out.
double log_sum_exp(std::span<const float> logits);

/// The first index of the largest logit.
int argmax(std::span<const float> logits);

/// KL(p || q) in nats, p = softmax(reference), q = softmax(logits); both lse as log_sum_exp() gives
/// them. Rounding may take a tiny divergence below zero, which is returned as 0.
double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> logits, double lse);

/// The smallest value that at least `share` of the values do not exceed (nearest rank); 0 if empty.
double percentile(std::vector<double> values, double share);

}  // namespace llama
