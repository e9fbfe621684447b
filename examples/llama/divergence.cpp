// SPDX-License-Identifier: MIT
#include "divergence.hpp"

#include "fail.hpp"
#include "float_cache.hpp"
#include "for_each_piece.hpp"
#include "kvtilt_cache.hpp"
#include "metrics.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>

namespace llama {
namespace {

/// Runs one piece with all plans. One per thread.
class Worker {
 public:
  Worker(const Model& model, const kvtilt::Plan& base, const std::vector<kvtilt::Plan>& plans,
         CacheSettings settings)
      : model_(model), base_(base), plans_(plans), settings_(settings) {
    for (const kvtilt::Plan& plan : plans) {
      const auto [changed, ignored] = std::mismatch(base.recipes.begin(), base.recipes.end(),
                                                    plan.recipes.begin(), plan.recipes.end());
      first_.push_back(static_cast<int>(changed - base.recipes.begin()));
    }
  }

  /// The sum of divergences over the piece's predictions: of base, then of each plan.
  template <class Advance>
  std::vector<double> run(const std::vector<int>& piece, Advance advance) {
    predictions_ = static_cast<int>(piece.size()) - 1;
    run_baseline(piece);
    advance();
    std::vector<double> sums{run_base(piece)};
    advance();
    for (std::size_t i = 0; i < plans_.size(); ++i) {
      sums.push_back(first_[i] == model_.config().layers ? sums[0]
                                                         : run_plan(plans_[i], first_[i]));
      advance();
    }
    return sums;
  }

 private:
  [[nodiscard]] std::size_t vocab() const {
    return static_cast<std::size_t>(model_.config().vocab);
  }
  [[nodiscard]] std::size_t hidden() const {
    return static_cast<std::size_t>(model_.config().hidden);
  }
  /// Tokens in the pass that starts at `position`: only the first of them may seal a page.
  [[nodiscard]] int chunk(int position) const {
    const int page = settings_.page_tokens;
    const int kept = (settings_.sink_tokens + settings_.recent_tokens) % page;
    return std::min(page - (position + 1 + page - kept) % page, predictions_ - position);
  }

  void run_baseline(const std::vector<int>& piece) {
    FloatCache cache(model_.config());
    cache.restart(predictions_);
    baseline_.resize(static_cast<std::size_t>(predictions_) * vocab());
    baseline_lse_.clear();
    for (int position = 0; position < predictions_; position += chunk(position)) {
      const auto tokens = static_cast<std::size_t>(chunk(position));
      const auto place = static_cast<std::size_t>(position);
      model_.forward({&piece[place], tokens}, cache, scratch_,
                     {baseline_.data() + place * vocab(), tokens * vocab()});
    }
    for (int position = 0; position < predictions_; ++position) {
      baseline_lse_.push_back(log_sum_exp(reference(position)));
      if (!std::isfinite(baseline_lse_.back()))
        fail("the model's logits are not finite at position ", position);
    }
  }

  double run_base(const std::vector<int>& piece) {
    const std::size_t layer_stride = static_cast<std::size_t>(predictions_) * hidden();
    states_.resize(static_cast<std::size_t>(model_.config().layers) * layer_stride);
    KvtiltCache cache(model_.config(), base_, settings_);
    cache.restart(predictions_);
    double sum = 0;
    for (int position = 0; position < predictions_; position += chunk(position)) {
      const auto tokens = static_cast<std::size_t>(chunk(position));
      const auto place = static_cast<std::size_t>(position);
      logits_.resize(tokens * vocab());
      model_.forward({&piece[place], tokens}, cache, scratch_, logits_,
                     [&](int layer, std::span<const float> state) {
                       std::copy(state.begin(), state.end(),
                                 states_.data() + static_cast<std::size_t>(layer) * layer_stride +
                                     place * hidden());
                     });
      sum += divergence(position);
    }
    return sum;
  }

  double run_plan(const kvtilt::Plan& plan, int first) {
    const float* states = states_.data() + static_cast<std::size_t>(first) *
                                               static_cast<std::size_t>(predictions_) * hidden();
    KvtiltCache cache(model_.config(), plan, settings_);
    cache.restart(predictions_);
    double sum = 0;
    for (int position = 0; position < predictions_; position += chunk(position)) {
      const auto tokens = static_cast<std::size_t>(chunk(position));
      logits_.resize(tokens * vocab());
      model_.forward_from(
          first, position,
          {states + static_cast<std::size_t>(position) * hidden(), tokens * hidden()}, cache,
          scratch_, logits_);
      sum += divergence(position);
    }
    return sum;
  }

  [[nodiscard]] std::span<const float> reference(int position) const {
    return std::span<const float>(baseline_).subspan(static_cast<std::size_t>(position) * vocab(),
                                                     vocab());
  }

  /// Sum of the divergences of a chunk of logits that starts at `position`.
  [[nodiscard]] double divergence(int position) const {
    double sum = 0;
    for (std::size_t i = 0; i < logits_.size() / vocab(); ++i) {
      const int place = position + static_cast<int>(i);
      const auto logits = std::span<const float>(logits_).subspan(i * vocab(), vocab());
      const double lse = log_sum_exp(logits);
      if (!std::isfinite(lse)) fail("the model's logits are not finite at position ", place);
      sum += kl_divergence(reference(place), baseline_lse_[static_cast<std::size_t>(place)], logits,
                           lse);
    }
    return sum;
  }

  const Model& model_;
  const kvtilt::Plan& base_;
  const std::vector<kvtilt::Plan>& plans_;
  CacheSettings settings_;
  std::vector<int> first_;  // per plan: the first layer that differs from base
  int predictions_ = 0;     // of the piece
  Scratch scratch_;
  Floats baseline_;                   // [predictions, vocab]
  std::vector<double> baseline_lse_;  // [predictions]
  Floats states_;                     // [layers, predictions, hidden]: what enters each layer
  Floats logits_;                     // [chunk, vocab]
};

}  // namespace

Divergences measure_divergence(const Model& model, const std::vector<std::vector<int>>& pieces,
                               const kvtilt::Plan& base, const std::vector<kvtilt::Plan>& plans,
                               const DivergenceOptions& options) {
  std::size_t predictions = 0;
  for (const auto& piece : pieces) predictions += piece.size() - 1;
  if (predictions == 0) fail("the text is too short: there is nothing to predict");
  std::vector<std::vector<double>> sums(pieces.size());
  std::mutex mutex;
  std::size_t done = 0;
  const auto total = static_cast<double>(pieces.size() * (plans.size() + 2));
  const auto advance = [&] {
    const std::lock_guard lock(mutex);
    if (options.progress) options.progress(static_cast<double>(++done) / total);
  };
  for_each_piece(
      pieces.size(), options.threads, [&] { return Worker(model, base, plans, options.cache); },
      [&](Worker& worker, std::size_t i) { sums[i] = worker.run(pieces[i], advance); });

  Divergences result;
  result.plans.resize(plans.size());
  for (const auto& piece : sums) {  // in their own order, whichever thread ran them
    result.base += piece[0] / static_cast<double>(predictions);
    for (std::size_t i = 0; i < plans.size(); ++i) {
      result.plans[i] += piece[i + 1] / static_cast<double>(predictions);
    }
  }
  return result;
}

}  // namespace llama
