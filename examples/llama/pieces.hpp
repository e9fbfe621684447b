// SPDX-License-Identifier: MIT
// Cuts a text into pieces: the token sequences that are evaluated.
#pragma once

#include "tokenizer.hpp"

#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// Sequences of at most `context` tokens, each to be run through an empty cache.
///
/// With `<|endoftext|>` markers: one sequence per part between them, without surrounding white
/// space and cut off at the context. Without: the stripped text, cut every `context` tokens. Every
/// sequence starts with the begin token if there is one; sequences too short to predict anything
/// are dropped.
std::vector<std::vector<int>> cut_pieces(std::string_view text, const Tokenizer& tokenizer,
                                         int context);

/// The text up to a share of its bytes (0 to 1), and the rest. The cut moves forward to the next
/// `<|endoftext|>` if the text has such markers, else to the next character. So one command can
/// read a share and another can skip exactly that share.
std::pair<std::string_view, std::string_view> split_text(std::string_view text, double share);

/// Shortens the list to at most `limit` predictions, one per token but the first of a piece.
void limit_predictions(std::vector<std::vector<int>>& pieces, long limit);

/// The same by leaving out whole pieces, spread evenly over the text.
void spread_predictions(std::vector<std::vector<int>>& pieces, long limit);

}  // namespace llama
