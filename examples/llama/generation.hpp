// SPDX-License-Identifier: MIT
// Continues a prompt with a model and a cache.
#pragma once

#include "attention_cache.hpp"
#include "context_shift.hpp"
#include "model.hpp"
#include "sampler.hpp"
#include "tokenizer.hpp"

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace llama {

struct Generation {
  std::vector<int> tokens;  // after the prompt; without the token that ended the text
  double seconds = 0;       // spent in decode steps
  int steps = 0;            // tokens fed back that belong to the text
  int passes = 0;           // forward passes for them; equals steps if there are no drafts
  int drafted = 0;          // tokens guessed by look_up()
  int accepted = 0;         // of those
  CacheUsage usage;         // at the end, like the next
  int tokens_kept = 0;      // in the cache: the prompt and all written tokens but the last, except
                            // those that a shift has removed
  bool context_full = false;

  [[nodiscard]] double tokens_per_s() const { return seconds > 0 ? steps / seconds : 0; }
};

/// The saved sequence that a prompt continues, and where to save the sequence after the prompt.
struct SavedPrompt {
  std::optional<std::span<const std::byte>> before;  // AttentionCache::save(); none: from the start
  std::vector<std::byte>* after = nullptr;           // receives that sequence; null: not saved
};

/// Reads the prompt in chunks, then produces up to `count` tokens, or fewer when the text ends or
/// the context is full. `on_text` receives the bytes of every token as it comes.
///
/// draft  tokens guessed from the text so far (look_up) and verified in one forward pass; 0: none.
///        It changes the speed and never the text: a guess is accepted only if the sampler chooses
///        it from the logits that decoding without drafts gives, bit for bit. For that, a draft
///        ends before a token that would seal a page of the cache. At most same_bits_tokens - 1.
/// shift  goes on when the context is full; the prompt, too, can then be longer
/// Throws if the prompt is empty or does not fit the context, if logits are not finite, and if the
/// cache cannot be saved, loaded or shifted.
Generation generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    int count, int draft, Sampler sampler, AttentionCache& cache,
                    const std::function<void(std::string_view)>& on_text,
                    const SavedPrompt& saved = {}, const std::optional<ContextShift>& shift = {});

}  // namespace llama
