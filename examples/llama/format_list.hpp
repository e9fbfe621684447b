// SPDX-License-Identifier: MIT
// Which formats a plan may choose from, as command lines write them.
#pragma once

#include <kvtilt/plan/losses.hpp>

#include <string>
#include <vector>

namespace llama {

/// What a bare width stands for: the library's default format of that width, or every granularity
/// and range rule with the default group. Norms cannot tell variants of one width apart; texts can.
enum class Variants { Default, All };

/// Entries are widths (3) or formats as recipe files write them (3c, 3c:g32:min-max), for both
/// tensors, or with a k or v in front for one of them (k4, v2t). Throws a sentence naming the entry
/// that is neither, or the tensor that is left without a format.
kvtilt::FormatChoices parse_formats(const std::vector<std::string>& entries, Variants variants,
                                    const kvtilt::CacheShape& shape, int page_tokens);

}  // namespace llama
