// SPDX-License-Identifier: MIT
// Guesses the next tokens from the text itself, without a second model. Good for texts that repeat
// themselves, as code, summaries and stories do.
#pragma once

#include <span>
#include <vector>

namespace llama {

/// Returns the `most` tokens (0 or more) that followed an earlier occurrence of the text's newest
/// tokens; none if even the newest token is new. The longest match of up to 8 tokens is used, among
/// equals the latest; at the end of the text the match repeats itself. O(text size).
///
/// Source  prompt lookup decoding (A. Saxena, 2023); llama.cpp's lookup example
std::vector<int> look_up(std::span<const int> text, int most);

}  // namespace llama
