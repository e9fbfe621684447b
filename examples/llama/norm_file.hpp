// SPDX-License-Identifier: MIT
// Norms that somebody published, without the weights.
#pragma once

#include "norm_source.hpp"

#include <filesystem>

namespace llama {

/// A published norm file: {"w_k": [one number per layer], "w_v": [...]}. It does not say which norm it
/// holds: both fields get the same numbers. The shape of the caches is not in it either.
WeightNorms read_norm_file(const std::filesystem::path& path, int kv_heads, int head_dim);

}  // namespace llama
