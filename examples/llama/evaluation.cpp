// SPDX-License-Identifier: MIT
#include "evaluation.hpp"

#include "fail.hpp"
#include "floats.hpp"
#include "for_each_piece.hpp"
#include "metrics.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <numeric>

namespace llama {
namespace {

using Clock = std::chrono::steady_clock;

// Baseline logits kept per thread, as a count of floats: 16 MiB, which is 8192 positions at a
// vocabulary of 512 and still 27 positions at one of 150,000.
constexpr std::size_t logits_kept = std::size_t{1} << 22;

/// The result of one recipe on one piece.
struct PieceResult {
  double nll = 0;
  std::vector<double> divergences;  // one per prediction
  long same_top = 0;
  long quantized = 0;
  double seconds = 0;
  double page_bits = 0;
  CacheUsage usage;
  int tokens = 0;
};

/// Decodes pieces with every recipe. One per thread.
class PieceEvaluator {
 public:
  PieceEvaluator(const Model& model, const EvaluationOptions& options)
      : model_(model), shift_(options.shift) {
    caches_.push_back(make_cache(model.config(), baseline_recipe, options.cache));
    for (const auto& recipe : options.recipes) {
      caches_.push_back(make_cache(model.config(), recipe, options.cache));
    }
    for (const NamedPlan& plan : options.plans) {
      caches_.push_back(make_cache(model.config(), plan.plan, options.cache));
    }
    chunk_ = static_cast<std::size_t>(options.chunk);
    vocab_ = static_cast<std::size_t>(model.config().vocab);
    block_ = std::clamp<std::size_t>(logits_kept / vocab_, 1, model.config().context);
    baseline_.resize(block_ * vocab_);
    baseline_lse_.resize(block_);
    logits_.resize(std::min(chunk_, block_) * vocab_);
  }

  /// Returns one result per cache. Caches take turns block by block, so that baseline logits need
  /// not be kept for the whole piece. `advance` is called with the number of predictions just made.
  template <class Advance>
  std::vector<PieceResult> run(const std::vector<int>& piece, Advance advance) {
    std::vector<PieceResult> results(caches_.size());
    const std::size_t predictions = piece.size() - 1;
    const int positions = std::min(static_cast<int>(predictions), model_.config().context);
    for (const auto& cache : caches_) cache->restart(positions);
    for (std::size_t begin = 0; begin < predictions; begin += block_) {
      const std::size_t end = std::min(begin + block_, predictions);
      for (std::size_t i = 0; i < caches_.size(); ++i) {
        run_block(piece, begin, end, i, results[i]);
        advance(end - begin);
      }
    }
    for (std::size_t i = 0; i < caches_.size(); ++i) {
      results[i].page_bits = caches_[i]->page_bits();
      results[i].usage = caches_[i]->usage();
      results[i].tokens = caches_[i]->kept();
    }
    return results;
  }

 private:
  void run_block(const std::vector<int>& piece, std::size_t begin, std::size_t end,
                 std::size_t index, PieceResult& result) {
    AttentionCache& cache = *caches_[index];
    for (std::size_t position = begin; position < end;) {
      const int room = make_room(model_.config(), shift_, cache);
      const std::size_t tokens =
          std::min({chunk_, end - position, static_cast<std::size_t>(cache.draft_room()) + 1,
                    static_cast<std::size_t>(std::max(1, room))});
      float* const place =
          index == 0 ? baseline_.data() + (position - begin) * vocab_ : &logits_[0];
      const auto start = Clock::now();
      model_.forward({&piece[position], tokens}, cache, scratch_, {place, tokens * vocab_});
      result.seconds += std::chrono::duration<double>(Clock::now() - start).count();
      for (std::size_t i = 0; i < tokens; ++i, ++position) {
        judge(piece, position, position - begin, {place + i * vocab_, vocab_}, index, result);
        if (cache.touched_codes()) ++result.quantized;
      }
    }
  }

  /// Adds one prediction to `result`; the baseline's logits for it are in `row` of the block.
  void judge(const std::vector<int>& piece, std::size_t position, std::size_t row,
             std::span<const float> logits, std::size_t index, PieceResult& result) {
    const std::span<const float> reference(baseline_.data() + row * vocab_, vocab_);
    const double lse = log_sum_exp(logits);
    if (!std::isfinite(lse)) fail("the model's logits are not finite at position ", position);
    if (index == 0) baseline_lse_[row] = lse;
    result.nll += lse - logits[static_cast<std::size_t>(piece[position + 1])];
    result.divergences.push_back(
        index == 0 ? 0 : kl_divergence(reference, baseline_lse_[row], logits, lse));
    if (index == 0 || argmax(logits) == argmax(reference)) ++result.same_top;
  }

  const Model& model_;
  std::optional<ContextShift> shift_;
  std::vector<std::unique_ptr<AttentionCache>> caches_;  // the baseline first
  Scratch scratch_;
  std::size_t vocab_ = 0;
  std::size_t block_ = 0;             // positions per block
  std::size_t chunk_ = 1;             // positions per pass, at most
  Floats baseline_;                   // [block, vocab]
  std::vector<double> baseline_lse_;  // [block]
  Floats logits_;                     // [chunk, vocab]
};

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Sums over the pieces in their order, so that the result does not depend on the threads.
RecipeReport summarize(const std::string& recipe, std::size_t index,
                       const std::vector<std::vector<PieceResult>>& pieces) {
  RecipeReport report;
  report.recipe = recipe;
  report.page_bits = pieces.front()[index].page_bits;
  std::vector<double> divergences;
  std::vector<double> predictions;  // of each piece
  std::vector<double> same_tops;
  double nll = 0;
  double seconds = 0;
  double bits = 0;
  double tokens = 0;
  long quantized = 0;
  for (const auto& results : pieces) {
    const PieceResult& piece = results[index];
    nll += piece.nll;
    seconds += piece.seconds;
    bits += piece.usage.effective_bits * piece.tokens;
    tokens += piece.tokens;
    quantized += piece.quantized;
    report.cache_bytes = std::max(report.cache_bytes, piece.usage.bytes);
    report.kld_sums.push_back(sum(piece.divergences));
    predictions.push_back(static_cast<double>(piece.divergences.size()));
    same_tops.push_back(static_cast<double>(piece.same_top));
    divergences.insert(divergences.end(), piece.divergences.begin(), piece.divergences.end());
  }
  const auto count = static_cast<double>(divergences.size());
  report.effective_bits = bits / tokens;
  report.quantized_share = static_cast<double>(quantized) / count;
  report.nll = nll / count;
  report.kld_mean = sum(report.kld_sums) / count;
  report.kld_mean_error = ratio_standard_error(report.kld_sums, predictions);
  report.kld_max = *std::max_element(divergences.begin(), divergences.end());
  report.top1 = 100 * sum(same_tops) / count;
  report.top1_error = ratio_standard_error(same_tops, predictions);
  if (report.top1_error) *report.top1_error *= 100;
  report.tokens_per_s = seconds > 0 ? count / seconds : 0;
  report.kld_p99 = percentile(std::move(divergences), 0.99);
  return report;
}

}  // namespace

std::vector<RecipeReport> evaluate(const Model& model, const std::vector<std::vector<int>>& pieces,
                                   const EvaluationOptions& options) {
  if (options.shift) check_shift(model.config(), *options.shift);
  std::size_t predictions = 0;
  for (const auto& piece : pieces) predictions += piece.size() - 1;
  if (predictions == 0) fail("the text is too short: there is nothing to predict");
  std::vector<std::string> names{baseline_recipe};
  names.insert(names.end(), options.recipes.begin(), options.recipes.end());
  for (const NamedPlan& plan : options.plans) names.push_back(plan.name);
  const auto total = static_cast<double>(predictions * names.size());
  std::vector<std::vector<PieceResult>> results(pieces.size());
  std::mutex mutex;  // guards done, and calls of progress
  std::size_t done = 0;
  const auto advance = [&](std::size_t count) {
    const std::lock_guard lock(mutex);
    done += count;
    if (options.progress) options.progress(static_cast<double>(done) / total);
  };
  for_each_piece(
      pieces.size(), options.threads,
      [&] { return std::make_unique<PieceEvaluator>(model, options); },
      [&](const std::unique_ptr<PieceEvaluator>& worker, std::size_t i) {
        results[i] = worker->run(pieces[i], advance);
      });

  std::vector<RecipeReport> reports;
  for (std::size_t i = 0; i < names.size(); ++i) {
    reports.push_back(summarize(names[i], i, results));
    reports.back().is_plan = i > options.recipes.size();
  }
  return reports;
}

}  // namespace llama
