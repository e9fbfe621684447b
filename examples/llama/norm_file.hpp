// SPDX-License-Identifier: MIT
// Reads files of published weight norms, which come without the weights.
#pragma once

#include "norm_source.hpp"

#include <filesystem>

namespace llama {

/// Reads {"w_k": [one number per layer], "w_v": [...]}. The file does not state which norm it
/// holds: both the Frobenius and the spectral field get its numbers. The cache's shape is the
/// caller's.
WeightNorms read_norm_file(const std::filesystem::path& path, int kv_heads, int head_dim);

}  // namespace llama
