// SPDX-License-Identifier: MIT
// Cuts a text into the token sequences that are evaluated.
#pragma once

#include "tokenizer.hpp"

#include <string_view>
#include <utility>
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

/// The text up to a share of its bytes (0 to 1), and the rest. The cut moves on to the next
/// `<|endoftext|>` where there are such markers, else to the next character, so that what one
/// command reads and another skips fits together.
std::pair<std::string_view, std::string_view> split_text(std::string_view text, double share);

/// Shortens the list so that it asks for at most `limit` predictions, one per token but the first.
void limit_predictions(std::vector<std::vector<int>>& pieces, long limit);

/// The same with pieces from everywhere: leaves out whole ones, evenly.
void spread_predictions(std::vector<std::vector<int>>& pieces, long limit);

}  // namespace llama
