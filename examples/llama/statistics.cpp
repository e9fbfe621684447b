// SPDX-License-Identifier: MIT
#include "statistics.hpp"

#include "capturing_cache.hpp"
#include "fail.hpp"
#include "float_cache.hpp"
#include "for_each_piece.hpp"
#include "pieces.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <mutex>

namespace llama {
namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Statistics of one kv head in one layer of a piece, over the tokens of its whole pages.
struct HeadStatistics {
  Eigen::ArrayXd query_square;  // [head_dim], summed over queries
  Eigen::ArrayXd attention;     // [tokens]
  Eigen::ArrayXd key_attention;
  Eigen::ArrayXd output_square;  // [head_dim], mean over query heads
};

/// [tokens, head_dim] of one head of a [tokens, heads, head_dim] list.
Rows head_rows(const Floats& numbers, int tokens, int heads, int head, int dim) {
  using Stride = Eigen::OuterStride<>;
  return Eigen::Map<const Rows, 0, Stride>(numbers.data() + std::ptrdiff_t{head} * dim, tokens, dim,
                                           Stride(std::ptrdiff_t{heads} * dim));
}

/// L with L L' = gram, so that |W x|^2 = |L' x|^2 for gram = W' W, in as many numbers as x has.
Eigen::MatrixXf square_root(const Eigen::MatrixXf& gram) {
  const Eigen::LDLT<Eigen::MatrixXd> factors(gram.cast<double>());  // also of singular matrices
  const Eigen::VectorXd diagonal = factors.vectorD().cwiseMax(0).cwiseSqrt();
  const Eigen::MatrixXd lower = factors.transpositionsP().transpose() *
                                Eigen::MatrixXd(factors.matrixL()) * diagonal.asDiagonal();
  return lower.cast<float>();
}

class PieceStatistics {
 public:
  PieceStatistics(const Model& model, int page_tokens)
      : config_(model.config()),
        model_(model),
        page_(page_tokens),
        cache_(config_, std::make_unique<FloatCache>(config_)) {}

  std::vector<kvtilt::CapturedLayer> run(const std::vector<int>& piece) {
    constexpr std::size_t chunk = 64;
    cache_.restart(static_cast<int>(piece.size()));
    logits_.resize(static_cast<std::size_t>(config_.vocab));
    for (std::size_t i = 0; i < piece.size(); i += chunk) {
      model_.forward({&piece[i], std::min(chunk, piece.size() - i)}, cache_, scratch_, logits_);
    }
    std::vector<kvtilt::CapturedLayer> layers;
    for (int layer = 0; layer < config_.layers; ++layer) {
      layers.push_back(summarize(layer, static_cast<int>(piece.size())));
    }
    return layers;
  }

 private:
  [[nodiscard]] kvtilt::CapturedLayer summarize(int index, int length) const {
    const CapturedLayer& source = cache_.layers()[static_cast<std::size_t>(index)];
    kvtilt::CapturedLayer layer;
    layer.tokens = length / page_ * page_;
    layer.kv_heads = config_.kv_heads;
    layer.key_dim = config_.head_dim;
    layer.value_dim = config_.head_dim;
    const std::ptrdiff_t numbers = std::ptrdiff_t{layer.tokens} * config_.kv_width();
    layer.keys.assign(source.keys.begin(), source.keys.begin() + numbers);
    layer.values.assign(source.values.begin(), source.values.begin() + numbers);
    Rows outputs(length, config_.query_width());
    for (int head = 0; head < config_.kv_heads; ++head) {
      const HeadStatistics sums = head_statistics(index, length, layer.tokens, head, outputs);
      const auto add = [](std::vector<double>& list, const Eigen::ArrayXd& part) {
        list.insert(list.end(), part.begin(), part.end());
      };
      add(layer.query_square, sums.query_square);
      add(layer.attention, sums.attention);
      add(layer.key_attention, sums.key_attention);
      add(layer.output_square, sums.output_square);
    }
    const Matrix& projection = model_.output_projection(index);
    const Eigen::Map<const Rows> weights(projection.data.data(), projection.rows, projection.cols);
    // Mean |W_O o|^2; join() turns it into the layer's weight.
    layer.weight = (outputs * weights.transpose()).cast<double>().squaredNorm() / length;
    return layer;
  }

  /// Also writes the attention outputs of the head's queries to their columns of `outputs`.
  HeadStatistics head_statistics(int index, int length, int tokens, int head, Rows& outputs) const {
    const CapturedLayer& source = cache_.layers()[static_cast<std::size_t>(index)];
    const int window = config_.windows[static_cast<std::size_t>(index)];
    const Matrix& projection = model_.output_projection(index);
    const Eigen::Map<const Rows> weights(projection.data.data(), projection.rows, projection.cols);
    const int dim = config_.head_dim;
    const Rows keys = head_rows(source.keys, length, config_.kv_heads, head, dim);
    const Rows values = head_rows(source.values, length, config_.kv_heads, head, dim);
    HeadStatistics sums{Eigen::ArrayXd::Zero(dim), Eigen::ArrayXd::Zero(tokens),
                        Eigen::ArrayXd::Zero(tokens), Eigen::ArrayXd::Zero(dim)};
    const int gqa_ratio = config_.query_heads / config_.kv_heads;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    Eigen::ArrayXf p;
    for (int query_head = head * gqa_ratio; query_head < (head + 1) * gqa_ratio; ++query_head) {
      const Rows queries = head_rows(source.queries, length, config_.query_heads, query_head, dim);
      const Eigen::MatrixXf part = weights.middleCols(std::ptrdiff_t{query_head} * dim, dim);
      sums.output_square += part.colwise().squaredNorm().transpose().array().cast<double>();
      const Rows projected = values * square_root(part.transpose() * part);
      const Eigen::ArrayXf value_squares = projected.rowwise().squaredNorm();
      for (int position = 0; position < length; ++position) {
        const Eigen::VectorXf query = queries.row(position);
        sums.query_square += query.cast<double>().array().square();
        const int first = window == 0 ? 0 : std::max(0, position + 1 - window);
        const int count = position + 1 - first;
        p = (keys.middleRows(first, count) * query).array() * scale;
        p = (p - p.maxCoeff()).exp();
        p /= p.sum();
        outputs.row(position).segment(std::ptrdiff_t{query_head} * dim, dim) =
            values.middleRows(first, count).transpose() * p.matrix();
        // Tokens that this query reads as codes: its own token may have filled the last page.
        const int sealed = std::max(0, (position + 1) / page_ * page_ - first);
        if (sealed == 0) continue;
        const Eigen::VectorXf output = projected.middleRows(first, count).transpose() * p.matrix();
        const Eigen::ArrayXf squares = p.head(sealed).square();
        const Eigen::ArrayXf distances =
            (value_squares.segment(first, sealed) -
             2 * (projected.middleRows(first, sealed) * output).array() + output.squaredNorm())
                .max(0.0F);
        sums.attention.segment(first, sealed) += squares.cast<double>();
        sums.key_attention.segment(first, sealed) += (squares * distances).cast<double>();
      }
    }
    sums.query_square /= static_cast<double>(length) * gqa_ratio;
    sums.output_square /= gqa_ratio;
    return sums;
  }

  const ModelConfig& config_;
  const Model& model_;
  int page_;
  CapturingCache cache_;
  Scratch scratch_;
  Floats logits_;
};

/// Joins the statistics of the pieces for one layer; means are weighted by tokens.
kvtilt::CapturedLayer join(const std::vector<std::vector<kvtilt::CapturedLayer>>& pieces,
                           std::size_t index) {
  kvtilt::CapturedLayer whole = pieces.front()[index];
  for (std::size_t i = 1; i < pieces.size(); ++i) whole.tokens += pieces[i][index].tokens;
  whole.keys.clear();
  whole.values.clear();
  whole.attention.clear();
  whole.key_attention.clear();
  std::fill(whole.query_square.begin(), whole.query_square.end(), 0.0);
  double output = 0;
  for (const auto& layers : pieces) {
    const kvtilt::CapturedLayer& part = layers[index];
    whole.keys.insert(whole.keys.end(), part.keys.begin(), part.keys.end());
    whole.values.insert(whole.values.end(), part.values.begin(), part.values.end());
    output += part.weight * part.tokens / whole.tokens;
    for (std::size_t i = 0; i < whole.query_square.size(); ++i) {
      whole.query_square[i] += part.query_square[i] * part.tokens / whole.tokens;
    }
  }
  whole.weight = output > 0 ? 1 / output : 0;
  for (int head = 0; head < whole.kv_heads; ++head) {
    const auto add = [&](std::vector<double> kvtilt::CapturedLayer::*list) {
      for (const auto& layers : pieces) {
        const kvtilt::CapturedLayer& part = layers[index];
        const auto begin = (part.*list).begin() + std::ptrdiff_t{head} * part.tokens;
        (whole.*list).insert((whole.*list).end(), begin, begin + part.tokens);
      }
    };
    add(&kvtilt::CapturedLayer::attention);
    add(&kvtilt::CapturedLayer::key_attention);
  }
  return whole;
}

}  // namespace

std::vector<kvtilt::CapturedLayer> capture_statistics(const Model& model,
                                                      const std::vector<std::vector<int>>& pieces,
                                                      const StatisticsOptions& options) {
  std::vector<std::vector<int>> chosen;
  std::copy_if(pieces.begin(), pieces.end(), std::back_inserter(chosen), [&](const auto& piece) {
    return piece.size() >= static_cast<std::size_t>(options.page_tokens);
  });
  if (chosen.empty()) {
    fail("no piece of the text is as long as a page of ", options.page_tokens, " tokens");
  }
  spread_predictions(chosen, options.most_tokens);
  if (chosen.front().size() < static_cast<std::size_t>(options.page_tokens)) {
    fail(options.most_tokens, " tokens are less than a page of ", options.page_tokens);
  }
  std::vector<std::vector<kvtilt::CapturedLayer>> parts(chosen.size());
  std::mutex mutex;
  std::size_t done = 0;
  for_each_piece(
      chosen.size(), options.threads,
      [&] { return std::make_unique<PieceStatistics>(model, options.page_tokens); },
      [&](const std::unique_ptr<PieceStatistics>& worker, std::size_t i) {
        parts[i] = worker->run(chosen[i]);
        const std::lock_guard lock(mutex);
        if (options.progress) {
          options.progress(static_cast<double>(++done) / static_cast<double>(chosen.size()));
        }
      });
  std::vector<kvtilt::CapturedLayer> layers;
  for (int layer = 0; layer < model.config().layers; ++layer) {
    layers.push_back(join(parts, static_cast<std::size_t>(layer)));
  }
  return layers;
}

}  // namespace llama
