// SPDX-License-Identifier: MIT
// Parses command-line lists of the formats that a plan may choose from.
#pragma once

#include <kvtilt/plan/losses.hpp>

#include <string>
#include <vector>

namespace llama {

/// What a bare width stands for: the library's default format of that width, or every granularity
/// and range rule with the default group. Losses from norms are equal for variants of one width;
/// losses from texts differ.
enum class Variants { Default, All };

/// Entries are widths (3) or formats as in recipe files (3c, 3c:g32:min-max), for both tensors, or
/// for one of them with a k or v in front (k4, v2t). Throws a sentence naming an entry that is
/// neither, or a tensor that is left without a format.
kvtilt::FormatChoices parse_formats(const std::vector<std::string>& entries, Variants variants,
                                    const kvtilt::CacheShape& shape, int page_tokens);

}  // namespace llama
