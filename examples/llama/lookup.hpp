// SPDX-License-Identifier: MIT
// Guesses the next tokens of a text from the text itself: no second model is needed where a text
// repeats itself, as code, summaries and stories do.
#pragma once

#include <span>
#include <vector>

namespace llama {

/// The `most` tokens (0 or more) that followed when the text's newest tokens occurred before, or
/// none if even the newest is new. The longest match of up to 8 tokens wins, the latest among
/// equals; where the text ends, its repetition goes on. O(text size).
///
/// Source  prompt lookup decoding (A. Saxena, 2023); llama.cpp's lookup example
std::vector<int> look_up(std::span<const int> text, int most);

}  // namespace llama
