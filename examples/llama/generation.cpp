// SPDX-License-Identifier: MIT
#include "generation.hpp"

#include "fail.hpp"
#include "linear.hpp"
#include "lookup.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace llama {
namespace {

// Long enough to be a matrix product, short enough that its buffers stay small.
constexpr std::size_t chunk_tokens = 64;

bool ends_text(const ModelConfig& config, const Tokenizer& tokenizer, int token) {
  // llama2.c models were trained on concatenated texts: the next one's begin token ends this one.
  return token == tokenizer.begin_token() ||
         std::find(config.end_tokens.begin(), config.end_tokens.end(), token) !=
             config.end_tokens.end();
}

}  // namespace

Generation generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    int count, int draft, Sampler sampler, AttentionCache& cache,
                    const std::function<void(std::string_view)>& on_text, const SavedPrompt& saved,
                    const std::optional<ContextShift>& shift) {
  const ModelConfig& config = model.config();
  const bool goes_on = saved.before.has_value();
  std::vector<int> tokens;
  if (tokenizer.begin_token() && !goes_on) tokens.push_back(*tokenizer.begin_token());
  const auto encoded = tokenizer.encode(prompt);
  tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  if (tokens.empty()) {
    fail("the prompt is empty, and ", goes_on ? "what was saved does not say what comes next"
                                              : "this model has no begin token to start from");
  }
  if (shift) check_shift(config, *shift);
  if (!shift && tokens.size() > static_cast<std::size_t>(config.context)) {
    fail("the prompt has ", tokens.size(), " tokens, more than the model's context of ",
         config.context);
  }
  if (draft < 0 || draft >= same_bits_tokens) {
    fail("a draft has 0 to ", same_bits_tokens - 1, " tokens, not ", draft);
  }
  const int prompt_tokens = static_cast<int>(tokens.size());
  const int wanted =
      static_cast<int>(std::min<std::int64_t>(std::int64_t{prompt_tokens} + count, config.context));
  if (goes_on) {
    cache.load(*saved.before, wanted);
  } else {
    cache.restart(wanted);
  }
  const int before = cache.length();
  if (before > config.context - (shift ? 0 : prompt_tokens)) {
    fail("the prompt has ", prompt_tokens, " tokens and what was saved ", before,
         ", together more than the model's context of ", config.context);
  }

  Scratch scratch;
  const auto vocab = static_cast<std::size_t>(config.vocab);
  Floats logits(vocab * static_cast<std::size_t>(1 + draft));
  for (std::size_t begin = 0; begin < tokens.size();) {
    const int room = make_room(config, shift, cache);
    const std::size_t size =
        std::min({chunk_tokens, tokens.size() - begin, static_cast<std::size_t>(room)});
    model.forward({&tokens[begin], size}, cache, scratch, {logits.data(), vocab});
    begin += size;
  }
  if (saved.after != nullptr) *saved.after = cache.save();

  Generation result;
  std::vector<int> batch{tokens.back()};  // newest token, then guesses; a row of logits for each
  while (true) {
    const int start = cache.length() - static_cast<int>(batch.size());
    std::size_t right = 0;  // tokens of the batch that belong to the text
    bool ended = false;
    do {
      const std::span<const float> row(logits.data() + right * vocab, vocab);
      const int token = sampler.choose(row);
      if (!std::isfinite(row[static_cast<std::size_t>(token)])) {
        fail("the model's logits are not finite at position ", start + static_cast<int>(right));
      }
      ++right;
      ended = ends_text(config, tokenizer, token);
      if (ended) break;
      on_text(tokenizer.decode(tokens.back(), token));
      tokens.push_back(token);
    } while (right < batch.size() && tokens.back() == batch[right]);
    result.accepted += static_cast<int>(right) - 1;
    cache.truncate(start + static_cast<int>(right));

    const int left = count - static_cast<int>(tokens.size()) + prompt_tokens;
    if (ended || left == 0) break;
    const int room = make_room(config, shift, cache);
    if (room == 0) {
      result.context_full = true;
      break;
    }
    const auto now = std::chrono::steady_clock::now();
    const int most = std::min({draft, left - 1, room - 1, cache.draft_room()});
    batch = look_up(tokens, most);
    result.drafted += static_cast<int>(batch.size());
    batch.insert(batch.begin(), tokens.back());
    model.forward(batch, cache, scratch, {logits.data(), batch.size() * vocab});
    result.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - now).count();
    ++result.passes;
  }
  result.tokens.assign(tokens.begin() + prompt_tokens, tokens.end());
  result.steps = cache.length() - before - prompt_tokens;
  result.usage = cache.usage();
  result.tokens_kept = cache.kept();
  return result;
}

}  // namespace llama
