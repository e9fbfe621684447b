// SPDX-License-Identifier: MIT
/// Graphs of ggml, and of forks that split off before it had backends.
#pragma once

#include <ggml.h>
#if __has_include(<ggml-cpu.h>)
#define KVTILT_GGML_HAS_BACKENDS 1
#else
#define KVTILT_GGML_HAS_BACKENDS 0
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvtilt::bench {

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using Context = std::unique_ptr<ggml_context, FreeContext>;

/// Memory for the tensors and the graph of one result; without their data.
std::vector<std::byte> graph_memory();
Context make_context(std::vector<std::byte>& memory);

/// Quantizes `dim` floats.
void quantize_row(ggml_type type, const float* row, int dim, std::byte* out);

/// Floats [tokens][heads][dim] as a tensor.
ggml_tensor* float_tensor(ggml_context* context, const float* data, int dim, int heads,
                          std::int64_t tokens);

/// Computes a graph of one result, which goes to `out`.
void compute(ggml_context* context, ggml_tensor* result, float* out, int threads);

/// Computes ggml's own attention.
///
/// queries       [tokens][heads][dim]
/// keys, values  [heads][tokens][dim]
/// mask          fp16 [tokens of queries, padded to 64][tokens of keys]
void compute_attention(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys,
                       ggml_tensor* values, void* mask, float scale, float* out, int threads);

}  // namespace kvtilt::bench
