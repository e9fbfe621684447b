// SPDX-License-Identifier: MIT
// Metrics that compare two models' predictions, in float64 from float32 logits.
#pragma once

#include <optional>
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

/// The standard error of the ratio r = sum(y) / sum(x), where y[i] and x[i] are sums over the
/// tokens of piece i of a text:
///
///     sqrt(m / (m - 1) * sum_i (y[i] - r * x[i])^2) / sum(x)      for m pieces
///
/// With the numbers of tokens as x it is that of a mean over tokens; with sums of two quantities
/// over the same pieces that of the ratio of their means, where what is hard for both cancels.
/// Tokens of a piece may be correlated; pieces are taken to be independent, and r to be nearly
/// linear in the sums: with fewer than about ten pieces, or when one dominates, the error is rough.
/// Nothing if there are fewer than two pieces, or if sum(x) is not positive.
///
/// Source: Cochran, Sampling Techniques (3rd ed.), chapter 6: ratio estimators.
std::optional<double> ratio_standard_error(std::span<const double> y, std::span<const double> x);

}  // namespace llama
