// SPDX-License-Identifier: MIT
// Goes on when the model's context is full, by removing the oldest tokens behind the first few.
#pragma once

#include "attention_cache.hpp"
#include "config.hpp"
#include "make_cache.hpp"

#include <optional>

namespace llama {

/// What stays when a context is full, and the cache's pages, of which whole ones are removed. The same
/// for every cache that a comparison runs.
struct ContextShift {
  int keep = 0;         // first tokens that always stay, rounded up to where a page ends
  CacheSettings cache;  // of every cache
};

/// Tokens that are kept: the sinks, or up to the end of a page behind them.
int kept_tokens(const ContextShift& shift);

/// Throws a sentence if the model's context cannot be shifted: a layer has a window, or the context
/// would hold no page to remove beside what is kept.
void check_shift(const ModelConfig& config, const ContextShift& shift);

/// Positions that are left in the context. If it is full and there is a shift, which check_shift() has
/// passed, first removes half of the tokens behind those that are kept, the oldest ones.
int make_room(const ModelConfig& config, const std::optional<ContextShift>& shift,
              AttentionCache& cache);

}  // namespace llama
