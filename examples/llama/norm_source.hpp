// SPDX-License-Identifier: MIT
// Norms of W_K and W_V out of checkpoints that this engine need not be able to run.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/plan/weight_norms.hpp>

#include <filesystem>
#include <functional>
#include <vector>

namespace llama {

/// A model as weights describe it.
struct WeightNorms {
  kvtilt::CacheShape shape;
  std::vector<kvtilt::LayerNorms> layers;
};

/// `path` is a folder with config.json and safetensors (one file, or shards with their index), or a
/// GGUF file. Understood are separate key and value projections and fused ones (Phi-3's order,
/// InternLM2's), biases, and QK-norms. Layers that have only other tensors keep no cache, as in
/// hybrid models. Refused, by a sentence that names the file and the tensor or key: a model without
/// any such projection, layers without any tensor, whatever else is missing, heads of another size
/// than the file states, and weights with scales beside them (FP8).
///
/// Reads nothing but these tensors, a layer at a time: memory is two matrices per thread as float32.
/// progress is called now and then, by one thread at a time.
WeightNorms read_weight_norms(const std::filesystem::path& path, int threads,
                              const std::function<void(double share)>& progress = {});

}  // namespace llama
