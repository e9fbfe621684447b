// SPDX-License-Identifier: MIT
// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on a cache that holds each latent once,
// in 8 bits. One layer decodes with random weights; in the end its output is compared with attention
// over the keys and values that the weights make of all latents.

#include <kvtilt/kvtilt.hpp>

#include <cmath>
#include <cstddef>
#include <iostream>
#include <random>
#include <vector>

namespace {

// Those of DeepSeek-V2-Lite.
constexpr int heads = 16;
constexpr int rank = 512;      // of the latent
constexpr int rope_dim = 64;   // rotated channels of a key, which all heads share
constexpr int nope_dim = 128;  // others, which are made of the latent
constexpr int value_dim = 128;
constexpr int latent_dim = rank + rope_dim;
constexpr int tokens = 400;
const float scale = 1.0f / std::sqrt(static_cast<float>(nope_dim + rope_dim));

using Matrix = std::vector<float>;

Matrix random_matrix(int rows, int columns, float spread) {
  static std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, spread);
  Matrix matrix(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  for (float& x : matrix) x = normal(random);
  return matrix;
}

const float shrink = 1.0f / std::sqrt(static_cast<float>(rank));
const Matrix key_up = random_matrix(heads * nope_dim, rank, shrink);     // W_UK
const Matrix value_up = random_matrix(heads * value_dim, rank, shrink);  // W_UV

/// out += the transpose of a [rows][columns] matrix times x.
void add_transposed_product(const float* matrix, int rows, int columns, const float* x,
                            float* out) {
  for (int row = 0; row < rows; ++row, matrix += columns)
    for (int column = 0; column < columns; ++column) out[column] += matrix[column] * x[row];
}

double dot(const float* a, const float* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

/// A query with key_up absorbed: per head, what multiplies the latent and then the rotated channels.
Matrix absorb(const Matrix& query) {  // [heads][nope_dim + rope_dim]
  Matrix absorbed(static_cast<std::size_t>(heads) * latent_dim);
  for (int head = 0; head < heads; ++head) {
    const float* own = query.data() + head * (nope_dim + rope_dim);
    float* out = absorbed.data() + head * latent_dim;
    add_transposed_product(key_up.data() + head * nope_dim * rank, nope_dim, rank, own, out);
    for (int i = 0; i < rope_dim; ++i) out[rank + i] = own[nope_dim + i];
  }
  return absorbed;
}

/// Attention of one head over expanded keys and values, in float64.
std::vector<double> expanded_attention(const Matrix& latents, const float* query, int head) {
  std::vector<double> out(value_dim);
  double sum = 0;
  for (int token = 0; token < tokens; ++token) {
    const float* latent = latents.data() + token * latent_dim;
    double logit = dot(latent + rank, query + nope_dim, rope_dim);
    for (int i = 0; i < nope_dim; ++i)
      logit += static_cast<double>(query[i]) *
               dot(key_up.data() + (head * nope_dim + i) * rank, latent, rank);
    const double weight = std::exp(logit * static_cast<double>(scale));
    sum += weight;
    for (int i = 0; i < value_dim; ++i)
      out[static_cast<std::size_t>(i)] +=
          weight * dot(value_up.data() + (head * value_dim + i) * rank, latent, rank);
  }
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace

int main() {
  using namespace kvtilt;
  const CacheShape shape{{LayerShape::latent(rank, rope_dim)}};
  CacheOptions options;
  options.recent_tokens = 64;
  const Recipe recipe = parse_recipe("k8").value();
  KVCache cache = KVCache::create(shape, Plan::uniform(shape, recipe), options).value();
  const SequenceId chat = cache.open().value();
  if (Status full = cache.reserve(chat, tokens); !full.ok()) return 1;

  const Matrix latents = random_matrix(tokens, latent_dim, 1.0f);  // an engine computes one a token
  Matrix query;
  Matrix latent_out(static_cast<std::size_t>(heads) * rank);
  std::vector<std::byte> workspace;
  AttendOptions attend_options;
  attend_options.scale = scale;  // the model's: the default would be that of the latent
  for (int token = 0; token < tokens; ++token) {
    const TensorView latent(latents.data() + token * latent_dim, 1, 1, latent_dim);
    Status status = cache.append(chat, 0, latent, {});
    query = random_matrix(heads, nope_dim + rope_dim, 1.0f);
    const Matrix absorbed = absorb(query);
    const LayerView view = cache.view(chat, 0).value();
    workspace.resize(attend_workspace_bytes(view));
    if (status.ok())
      status = attend(view, TensorView(absorbed.data(), 1, heads, latent_dim),
                      OutputView(latent_out.data(), 1, heads, rank), attend_options, workspace);
    if (!status.ok()) return std::cerr << status.message() << '\n', 1;
  }

  double difference = 0;
  double size = 0;
  for (int head = 0; head < heads; ++head) {
    const std::vector<double> expected =
        expanded_attention(latents, query.data() + head * (nope_dim + rope_dim), head);
    for (int i = 0; i < value_dim; ++i) {  // value_up, applied to the output
      const double got = dot(value_up.data() + (head * value_dim + i) * rank,
                             latent_out.data() + head * rank, rank);
      const double wanted = expected[static_cast<std::size_t>(i)];
      difference += (got - wanted) * (got - wanted);
      size += wanted * wanted;
    }
  }
  const double error = std::sqrt(difference / size);
  const double page_bytes = cache.page_bits() / 8 * latent_dim;
  std::cout << "a token takes " << page_bytes << " bytes in pages of " << to_string(recipe) << ", "
            << 2 * latent_dim << " as a 16-bit latent, "
            << 2 * heads * (nope_dim + rope_dim + value_dim) << " as 16-bit keys and values; error "
            << error << '\n';
  return error < 0.02 ? 0 : 1;
}
