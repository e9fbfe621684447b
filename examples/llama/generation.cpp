// SPDX-License-Identifier: MIT
#include "generation.hpp"

#include "fail.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace llama {
namespace {

// Long enough to be a matrix product, short enough that its buffers stay small.
constexpr std::size_t chunk_tokens = 64;

bool ends_text(const ModelConfig& config, const Tokenizer& tokenizer, int token) {
  // llama2.c models were trained on texts in a row: the next one's begin token ends this one.
  return token == tokenizer.begin_token() ||
         std::find(config.end_tokens.begin(), config.end_tokens.end(), token) !=
             config.end_tokens.end();
}

}  // namespace

Generation generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    int count, Sampler sampler, AttentionCache& cache,
                    const std::function<void(std::string_view)>& on_text) {
  const ModelConfig& config = model.config();
  std::vector<int> tokens;
  if (tokenizer.begin_token()) tokens.push_back(*tokenizer.begin_token());
  const auto encoded = tokenizer.encode(prompt);
  tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  if (tokens.empty()) fail("the prompt is empty, and this model has no begin token to start from");
  if (tokens.size() > static_cast<std::size_t>(config.context)) {
    fail("the prompt has ", tokens.size(), " tokens, more than the model's context of ",
         config.context);
  }
  const int prompt_tokens = static_cast<int>(tokens.size());
  const int room = config.context - prompt_tokens;
  cache.restart(prompt_tokens + std::min(count, room));

  Scratch scratch;
  Floats logits(static_cast<std::size_t>(config.vocab));
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk_tokens) {
    const std::size_t size = std::min(chunk_tokens, tokens.size() - begin);
    model.forward({&tokens[begin], size}, cache, scratch, logits);
  }

  Generation result;
  int previous = tokens.back();
  while (static_cast<int>(result.tokens.size()) < count) {
    const int token = sampler.choose(logits);
    if (!std::isfinite(logits[static_cast<std::size_t>(token)])) {
      fail("the model's logits are not finite at position ", cache.length() - 1);
    }
    if (ends_text(config, tokenizer, token)) break;
    result.tokens.push_back(token);
    on_text(tokenizer.decode(previous, token));
    previous = token;
    if (static_cast<int>(result.tokens.size()) == count) break;
    if (result.steps == room) {
      result.context_full = true;
      break;
    }
    const auto start = std::chrono::steady_clock::now();
    model.forward({&token, 1}, cache, scratch, logits);
    result.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++result.steps;
  }
  result.usage = cache.usage();
  result.tokens_kept = cache.length();
  return result;
}

}  // namespace llama
