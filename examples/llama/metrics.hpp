// SPDX-License-Identifier: MIT
// Metrics that compare two models' predictions, in float64 from float32 logits.
#pragma once

#include <span>
#include <vector>

namespace llama {

/// log(sum(exp(logits))), natural. NaN or infinity in, NaN or infinity out.
double log_sum_exp(std::span<const float> logits);

/// The first index of the largest logit.
int argmax(std::span<const float> logits);

/// KL(p || q) in nats for p = softmax(reference), q = softmax(logits); reference_lse and lse are
/// their log_sum_exp(). If rounding makes it negative, returns 0.
double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> logits, double lse);

/// The smallest value that at least `share` of the values do not exceed (nearest rank); 0 if empty.
double percentile(std::vector<double> values, double share);

}  // namespace llama
