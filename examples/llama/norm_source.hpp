// SPDX-License-Identifier: MIT
// Computes norms of W_K and W_V from checkpoints, also of models that this engine cannot run.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/plan/weight_norms.hpp>

#include <filesystem>
#include <functional>
#include <vector>

namespace llama {

/// What a model's weights tell: the shape of its cache and the norms of its layers.
struct WeightNorms {
  kvtilt::CacheShape shape;
  std::vector<kvtilt::LayerNorms> layers;
  bool one_norm = false;  // both norm fields hold the same norm, of unknown kind
};

/// `path` is a folder with config.json and safetensors (one file, or shards with their index), or a
/// GGUF file. Reads separate key and value projections and fused ones (Phi-3's order, InternLM2's),
/// biases, and QK-norms. Layers that have only other tensors have no cache, as in hybrid models.
/// Throws a sentence that names the file and the tensor or key for a model without any such
/// projection, layers without any tensor, anything else that is missing, heads of another size than
/// the file states, and weights with separate scales (FP8).
///
/// Reads only these tensors, a layer at a time: memory is two float32 matrices per thread. progress
/// is called repeatedly, by one thread at a time.
WeightNorms read_weight_norms(const std::filesystem::path& path, int threads,
                              const std::function<void(double share)>& progress = {});

}  // namespace llama
