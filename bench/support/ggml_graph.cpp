// SPDX-License-Identifier: MIT
#include "support/ggml_graph.hpp"

#if KVTILT_GGML_HAS_BACKENDS
#include <ggml-cpu.h>
#endif

#include <algorithm>
#include <cstdlib>

namespace kvtilt::bench {

std::vector<std::byte> graph_memory() {
  return std::vector<std::byte>(64 * ggml_tensor_overhead() + ggml_graph_overhead());
}

Context make_context(std::vector<std::byte>& memory) {
  return Context(ggml_init({memory.size(), memory.data(), true}));
}

void quantize_row(ggml_type type, const float* row, int dim, std::byte* out) {
#if KVTILT_GGML_HAS_BACKENDS
  ggml_quantize_chunk(type, row, out, 0, 1, dim, nullptr);
#else
  ggml_quantize_chunk(type, row, out, 0, 1, dim, nullptr, nullptr);
#endif
}

ggml_tensor* float_tensor(ggml_context* context, const float* data, int dim, int heads,
                          std::int64_t tokens) {
  ggml_tensor* const tensor = ggml_new_tensor_3d(context, GGML_TYPE_F32, dim, heads, tokens);
  tensor->data = const_cast<float*>(data);
  return tensor;
}

void compute(ggml_context* context, ggml_tensor* result, float* out, int threads) {
  result->data = out;
  ggml_cgraph* const graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, result);
#if KVTILT_GGML_HAS_BACKENDS
  ggml_cplan plan = ggml_graph_plan(graph, threads, nullptr);
#else
  ggml_cplan plan = ggml_graph_plan(graph, threads);
#endif
  static std::vector<std::uint8_t> work;
  work.resize(std::max(work.size(), plan.work_size));
  plan.work_data = work.data();
  if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) std::abort();
}

void compute_attention(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys,
                       ggml_tensor* values, void* mask, float scale, float* out, int threads) {
  ggml_tensor* const visible =
      ggml_new_tensor_2d(context, GGML_TYPE_F16, keys->ne[1], (queries->ne[2] + 63) / 64 * 64);
  visible->data = mask;
  ggml_tensor* const result =
      ggml_flash_attn_ext(context, ggml_permute(context, queries, 0, 2, 1, 3), keys, values,
                          visible, scale, 0.0f, 0.0f);
  ggml_flash_attn_ext_set_prec(result, GGML_PREC_F32);
  compute(context, result, out, threads);
}

}  // namespace kvtilt::bench
