// SPDX-License-Identifier: MIT
// Continues a prompt.
#pragma once

#include "attention_cache.hpp"
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
  int steps = 0;            // tokens fed back, and right
  int passes = 0;           // forward passes for them: as many as steps without drafts
  int drafted = 0;          // tokens guessed by look_up()
  int accepted = 0;         // of those
  CacheUsage usage;         // at the end, like the next
  int tokens_kept = 0;      // in the cache: prompt and all but the last token written
  bool context_full = false;

  [[nodiscard]] double tokens_per_s() const { return seconds > 0 ? steps / seconds : 0; }
};

/// What a prompt goes on from, and what is kept of it for others to go on from.
struct SavedPrompt {
  std::optional<std::span<const std::byte>> before;  // AttentionCache::save(); none: from the start
  std::vector<std::byte>* after = nullptr;           // receives that and the prompt; null: not kept
};

/// Reads the prompt in chunks, then produces up to `count` tokens, or fewer when the text ends or
/// the context is full. `on_text` receives the bytes of every token as it comes.
///
/// draft  tokens guessed from the text so far (look_up) and verified in one forward pass; 0: none.
///        It decides the speed and never the text: a guess counts only if the sampler chooses it
///        from the logits that decoding without drafts gives, bit for bit. For that, a draft ends
///        where a page of the cache is due to be sealed. At most same_bits_tokens - 1.
/// Throws when the prompt is empty or does not fit the context, on logits that are not finite, and
/// where the cache refuses to be saved or loaded.
Generation generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                    int count, int draft, Sampler sampler, AttentionCache& cache,
                    const std::function<void(std::string_view)>& on_text,
                    const SavedPrompt& saved = {});

}  // namespace llama
