// SPDX-License-Identifier: MIT
// Cuts a text into the token sequences that are evaluated.
#pragma once

#include "tokenizer.hpp"

#include <string_view>
#include <vector>

namespace llama {

/// Sequences of at most `context` tokens, each to be run through an empty cache.
///
/// With `<|endoftext|>` markers: one sequence per part between them, surrounding white space
/// removed, what exceeds the context dropped. Without: the stripped text, cut every `context`
/// tokens. Every sequence starts with the begin token if there is one; those too short to predict
/// anything are left out.
std::vector<std::vector<int>> cut_pieces(std::string_view text, const Tokenizer& tokenizer,
                                         int context);

/// Shortens the list so that it asks for at most `limit` predictions, one per token but the first.
void limit_predictions(std::vector<std::vector<int>>& pieces, long limit);

}  // namespace llama
