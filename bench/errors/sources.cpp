// SPDX-License-Identifier: MIT
#include "errors/sources.hpp"

#include <kvtilt/io/mapped_file.hpp>

#include "llama/capturing_cache.hpp"
#include "llama/fail.hpp"
#include "llama/float_cache.hpp"
#include "llama/model.hpp"
#include "llama/pieces.hpp"
#include "llama/text_file.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

namespace kvtilt::bench {

namespace {

/// Standard deviation of a random query's logits over the tokens: attention is then neither uniform
/// nor on one token.
constexpr double logit_spread = 2.0;

using Normal = std::normal_distribution<float>;

Part make_part(int kv_heads, int gqa_ratio, int head_dim, std::int64_t tokens,
               std::int64_t query_tokens) {
  Part part{kv_heads, kv_heads * gqa_ratio, head_dim, tokens, query_tokens, {}, {}, {}};
  const std::size_t row = static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(head_dim);
  part.keys.resize(static_cast<std::size_t>(tokens) * row);
  part.values.resize(part.keys.size());
  part.queries.resize(static_cast<std::size_t>(query_tokens * gqa_ratio) * row);
  return part;
}

/// Fills the queries with random directions, each scaled so that its logits on these keys have the
/// standard deviation logit_spread. `sizes` are the channels' standard deviations.
void fill_queries(Part& part, std::mt19937& random, const std::vector<float>& sizes) {
  Normal normal;
  const std::size_t dim = static_cast<std::size_t>(part.head_dim);
  const int gqa_ratio = part.query_heads / part.kv_heads;
  for (std::size_t q = 0; q < part.queries.size() / dim; ++q) {
    float* query = &part.queries[q * dim];
    for (std::size_t c = 0; c < dim; ++c) query[c] = sizes[c] * normal(random);
    const int head = static_cast<int>(q) % part.query_heads / gqa_ratio;
    double sum = 0;
    double squares = 0;
    for (std::int64_t t = 0; t < part.tokens; ++t) {
      const float* key = &part.keys[static_cast<std::size_t>(t * part.kv_heads + head) * dim];
      double dot = 0;
      for (std::size_t c = 0; c < dim; ++c)
        dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
      dot /= std::sqrt(static_cast<double>(dim));
      sum += dot;
      squares += dot * dot;
    }
    const double count = static_cast<double>(part.tokens);
    const double spread = std::sqrt(squares / count - sum / count * (sum / count));
    for (std::size_t c = 0; c < dim; ++c) query[c] *= static_cast<float>(logit_spread / spread);
  }
}

/// Normal numbers; four channels of each key head are `outlier` times as large as the others. If
/// `matched`, the queries have the same outliers, so that these channels dominate every logit.
Source synthetic(float outlier, bool matched) {
  constexpr int dim = 128;
  Source source;
  source.name = outlier == 1 ? "normal"
                             : "outliers " + std::to_string(static_cast<int>(outlier)) + "x" +
                                   (matched ? ", q too" : "");
  source.description = outlier == 1 ? "normal keys and values"
                                    : "four key channels larger" +
                                          std::string(matched ? ", in the queries, too" : "");
  std::mt19937 random(1);
  Normal normal;
  Part part = make_part(4, 4, dim, 1024, 16);
  std::vector<float> sizes(dim, 1.0f);
  for (std::size_t c = 3; c < dim; c += 37) sizes[c] = outlier;
  for (std::size_t i = 0; i < part.keys.size(); ++i) part.keys[i] = sizes[i % dim] * normal(random);
  for (float& x : part.values) x = normal(random);
  fill_queries(part, random, matched ? sizes : std::vector<float>(dim, 1.0f));
  source.parts.push_back(std::move(part));
  return source;
}

/// A long text whose values have means of their own in every channel, as large as their spread. If
/// asked for, every 128th token is a delimiter: its logits are larger, its values small. Whatever a
/// group loses of its weights has the same sign in all groups.
Source offset_values(bool delimiters) {
  constexpr std::size_t dim = 128;
  constexpr float gap = 8.0f;  // of a delimiter's logits over the others
  const float spread = delimiters ? 0.5f : 3.0f;
  Source source;
  source.name = delimiters ? "delimiters" : "offset values";
  source.description =
      delimiters ? "the same, logits spread by 0.5, those of every 128th token larger by 8"
                 : "16,384 tokens, values with a mean in each channel, logits spread by 3";
  std::mt19937 random(3);
  Normal normal;
  Part part = make_part(1, 4, dim, 16384, 4);
  std::vector<float> means(dim);
  for (float& mean : means) mean = normal(random);
  for (std::size_t i = 0; i < part.keys.size(); ++i) {
    const bool delimiter = delimiters && i / dim % 128 == 64;
    const float key = normal(random);
    const float value = normal(random);
    part.keys[i] = i % dim != 0 ? key : delimiter ? gap : 0.0f;
    part.values[i] = delimiter ? 0.3f * value : value + means[i % dim];
  }
  for (std::size_t i = 0; i < part.queries.size(); ++i)
    part.queries[i] = i % dim == 0 ? std::sqrt(static_cast<float>(dim)) : spread * normal(random);
  source.parts.push_back(std::move(part));
  return source;
}

/// Makes long texts from the few tokens of a real layer. Its first token is left out: it is unlike
/// all others, and caches keep it in 16 bits. The others are repeated in turn or, if `drawn`,
/// replaced by samples with their mean and covariance, so that a group consists of many different
/// numbers.
Source gpt2(const std::filesystem::path& data, bool drawn) {
  constexpr int layers = 12;
  constexpr int heads = 12;
  constexpr int tokens = 6;
  constexpr int dim = 64;
  const auto path = data / "kv/gpt2_kv_6tok.f32";
  const MappedFile file = MappedFile::open(path).value();
  std::vector<float> numbers(std::size_t{layers} * 2 * heads * tokens * dim);
  if (file.bytes().size() != numbers.size() * sizeof(float))
    llama::fail(path.string(), ": ", file.bytes().size(), " bytes, expected ",
                numbers.size() * sizeof(float));
  std::memcpy(numbers.data(), file.bytes().data(), file.bytes().size());

  Source source{drawn ? "GPT-2, drawn" : "GPT-2, repeated",
                drawn ? "12 layers, tokens drawn with mean and covariance of 5 real ones"
                      : "12 layers, 5 real tokens in turn",
                {}};
  std::mt19937 random(2);
  Normal normal;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    Part part = make_part(heads, 1, dim, 512, 16);
    for (std::size_t t = 0; t < 512; ++t)
      for (std::size_t head = 0; head < heads; ++head)
        for (const std::size_t tensor : {std::size_t{0}, std::size_t{1}}) {
          const float* rows =
              &numbers[((layer * 2 + tensor) * heads + head) * tokens * dim + std::size_t{dim}];
          float* out = &(tensor == 0 ? part.keys : part.values)[(t * heads + head) * dim];
          float weights[tokens - 1];
          for (float& weight : weights) weight = normal(random) / std::sqrt(tokens - 2.0f);
          for (std::size_t c = 0; c < dim; ++c) {
            float mean = 0;
            float deviation = 0;
            for (std::size_t i = 0; i < tokens - 1; ++i) mean += rows[i * dim + c] / (tokens - 1);
            for (std::size_t i = 0; i < tokens - 1; ++i)
              deviation += weights[i] * (rows[i * dim + c] - mean);
            out[c] = drawn ? mean + deviation : rows[t % (tokens - 1) * dim + c];
          }
        }
    fill_queries(part, random, std::vector<float>(dim, 1.0f));
    source.parts.push_back(std::move(part));
  }
  return source;
}

/// Queries, keys and values of all layers of a model, on the first texts that fill its context.
Source captured(const std::filesystem::path& data, const std::string& name, const std::string& text,
                int page_tokens) {
  constexpr std::size_t texts = 2;
  constexpr std::int64_t query_tokens = 64;
  const llama::Model model(data / "models" / name);
  const llama::ModelConfig& config = model.config();
  const auto tokenizer = llama::load_tokenizer(data / "models" / name, config);
  auto pieces =
      llama::cut_pieces(llama::read_text_file(data / "text" / text), *tokenizer, config.context);
  std::erase_if(pieces, [&](const auto& piece) {
    return piece.size() < static_cast<std::size_t>(config.context);
  });
  if (pieces.size() < texts) llama::fail(text, ": fewer than ", texts, " texts fill the context");

  Source source{name, "captured, " + std::to_string(config.layers) + " layers on 2 texts", {}};
  for (std::size_t i = 0; i < texts; ++i) {
    llama::CapturingCache cache(config, std::make_unique<llama::FloatCache>(config));
    cache.restart(config.context);
    llama::Scratch scratch;
    std::vector<float> logits(static_cast<std::size_t>(config.vocab));
    model.forward(pieces[i], cache, scratch, logits);
    for (const llama::CapturedLayer& layer : cache.layers()) {
      Part part = make_part(config.kv_heads, config.query_heads / config.kv_heads, config.head_dim,
                            config.context / page_tokens * page_tokens, query_tokens);
      std::copy_n(layer.keys.begin(), part.keys.size(), part.keys.begin());
      std::copy_n(layer.values.begin(), part.values.size(), part.values.begin());
      const std::ptrdiff_t skipped = (part.tokens - query_tokens) * config.query_width();
      std::copy_n(layer.queries.begin() + skipped, part.queries.size(), part.queries.begin());
      source.parts.push_back(std::move(part));
    }
  }
  return source;
}

}  // namespace

std::vector<Source> make_sources(const std::filesystem::path& data, int page_tokens) {
  std::vector<Source> sources;
  sources.push_back(synthetic(1, false));
  for (const bool matched : {false, true})
    for (const float outlier : {5.0f, 10.0f, 30.0f}) sources.push_back(synthetic(outlier, matched));
  for (const bool delimiters : {false, true}) sources.push_back(offset_values(delimiters));
  for (const bool drawn : {false, true}) sources.push_back(gpt2(data, drawn));
  sources.push_back(captured(data, "stories260K", "tinystories_317.txt", page_tokens));
  sources.push_back(captured(data, "novels-3M", "novels_heldout.txt", page_tokens));
  return sources;
}

}  // namespace kvtilt::bench
