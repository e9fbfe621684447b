// SPDX-License-Identifier: MIT
/// kvtilt's attention as a node of a ggml graph, in the place of ggml_flash_attn_ext() and of the nodes
/// that copy keys and values to a cache. bench/attention/ggml_bench.cpp and bench/llama_cpp run it.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include "thread_team.hpp"

#include <ggml.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

/// Rows of a graph's tensors that are the next tokens of one sequence.
struct GgmlRows {
  kvtilt::SequenceId sequence;
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// One layer's attention. It must outlive the graphs that have its node; one graph is computed at a
/// time, but graphs of all layers may share a team.
class GgmlAttention {
 public:
  kvtilt::KVCache* cache = nullptr;
  int layer = 0;
  ThreadTeam* team = nullptr;
  kvtilt::AttendOptions options;
  std::vector<GgmlRows> rows;  ///< of the graph to compute; every row and every sequence once
  int chunk_tokens = 16;  ///< from so many new tokens of a sequence on, they are a prompt's chunk

  /// Adds the node: appends keys and values, which RoPE has rotated, and attends with the queries.
  ///
  /// queries  [tokens][query_heads][key_dim], in ggml's order ne = {key_dim, query_heads, tokens}; f32,
  ///          f16 or bf16, channels contiguous, like keys and values [tokens][kv_heads][...]
  /// Returns  f32 [tokens][query_heads][value_dim]
  ggml_tensor* node(ggml_context* context, ggml_tensor* queries, ggml_tensor* keys,
                    ggml_tensor* values) {
    ggml_tensor* arguments[] = {queries, keys, values};
    return ggml_custom_4d(context, GGML_TYPE_F32, values->ne[0], queries->ne[1], queries->ne[2], 1,
                          arguments, 3, &compute, GGML_N_TASKS_MAX, this);
  }

  /// The same for values in the keys (multi-head latent attention).
  ///
  /// latents  [tokens][1][key_dim]: the first `rank` channels are the value
  /// Returns  f32 [tokens][query_heads][rank]
  ggml_tensor* latent_node(ggml_context* context, ggml_tensor* queries, ggml_tensor* latents,
                           int rank) {
    ggml_tensor* arguments[] = {queries, latents};
    return ggml_custom_4d(context, GGML_TYPE_F32, rank, queries->ne[1], queries->ne[2], 1,
                          arguments, 2, &compute, GGML_N_TASKS_MAX, this);
  }

  /// Of the newest computation, as nodes of a graph cannot fail. After an error truncate the sequences
  /// to their lengths before the graph: layers may be out of step.
  [[nodiscard]] const kvtilt::Status& status() const { return status_; }

 private:
  static void compute(ggml_tensor* node, int thread, int threads, void* attention) {
    auto& self = *static_cast<GgmlAttention*>(attention);
    if (thread != 0) return self.team->follow(thread, threads);
    self.team->lead(threads, [&](const kvtilt::ParallelFor& parallel) {
      try {
        self.status_ = self.attend(*node, parallel);
      } catch (const std::bad_alloc&) {  // must not reach ggml, nor leave the followers waiting
        self.status_ = kvtilt::Status::error(kvtilt::ErrorCode::OutOfMemory,
                                             "layer %d: no memory for attention", self.layer);
      }
    });
  }

  /// kvtilt refuses what is none of its types.
  static kvtilt::ElementType type_of(const ggml_tensor& tensor) {
    switch (tensor.type) {
      case GGML_TYPE_F32:
        return kvtilt::ElementType::F32;
      case GGML_TYPE_F16:
        return kvtilt::ElementType::F16;
      case GGML_TYPE_BF16:
        return kvtilt::ElementType::BF16;
      default:
        return static_cast<kvtilt::ElementType>(255);
    }
  }

  /// InvalidArgument for rows or tensors that would be misread; kvtilt checks all else.
  [[nodiscard]] kvtilt::Status check(const ggml_tensor& node) const {
    const auto fail = [&](const char* what) {
      return kvtilt::Status::error(kvtilt::ErrorCode::InvalidArgument, "layer %d: %s", layer, what);
    };
    for (const ggml_tensor* tensor : {node.src[0], node.src[1], node.src[2]}) {
      if (tensor == nullptr) continue;
      const std::size_t size = ggml_type_size(tensor->type);
      if (tensor->nb[0] != size)
        return fail("channels of queries, keys and values must be contiguous");
      if (tensor->nb[1] % size != 0 || tensor->nb[2] % size != 0)
        return fail("strides must be multiples of an element");
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].first < 0 || rows[i].count < 0 || rows[i].first > node.ne[2] - rows[i].count)
        return fail("rows lie outside of the tensors");
      for (std::size_t j = 0; j < i; ++j)
        if (rows[i].sequence == rows[j].sequence)
          return fail("a sequence's rows must follow each other, and be named once");
    }
    return {};
  }

  /// Some rows of a tensor; {} of none.
  static kvtilt::TensorView view(const ggml_tensor* from, const GgmlRows& rows) {
    if (from == nullptr) return {};
    const ggml_tensor& tensor = *from;
    const auto size = static_cast<std::int64_t>(tensor.nb[0]);
    const auto stride = [&](int axis) { return static_cast<std::int64_t>(tensor.nb[axis]) / size; };
    const std::byte* data =
        static_cast<const std::byte*>(tensor.data) + rows.first * stride(2) * size;
    return kvtilt::TensorView(data, type_of(tensor), rows.count, static_cast<int>(tensor.ne[1]),
                              static_cast<int>(tensor.ne[0]))
        .with_strides(stride(2), stride(1));
  }
  static kvtilt::OutputView output(const ggml_tensor& node, const GgmlRows& rows) {
    const kvtilt::TensorView out = view(&node, rows);
    return {static_cast<float*>(const_cast<void*>(out.data)), rows.count, out.heads, out.dim};
  }

  /// The new tokens of a step attend to themselves as the cache stores them, those of a prompt's chunk
  /// before the cache quantizes them.
  kvtilt::Status attend(const ggml_tensor& node, const kvtilt::ParallelFor& parallel) {
    KVTILT_RETURN_IF_ERROR(check(node));
    steps_.clear();
    chunks_.clear();
    for (const GgmlRows& part : rows) {
      const kvtilt::TensorView queries = view(node.src[0], part);
      const kvtilt::TensorView keys = view(node.src[1], part);
      const kvtilt::TensorView values = view(node.src[2], part);
      const bool chunk = part.count >= chunk_tokens;
      if (!chunk) KVTILT_RETURN_IF_ERROR(cache->append(part.sequence, layer, keys, values));
      auto past = cache->view(part.sequence, layer);
      if (!past) return std::move(past).take_status();
      if (chunk)
        chunks_.push_back({*past, queries, keys, values, output(node, part), options});
      else
        steps_.push_back({*past, queries, output(node, part), options});
    }
    workspace_.resize(
        std::max({workspace_.size(), kvtilt::attend_workspace_bytes(steps_, parallel.workers),
                  kvtilt::attend_prefill_workspace_bytes(chunks_, parallel.workers)}));
    KVTILT_RETURN_IF_ERROR(kvtilt::attend(steps_, workspace_, parallel));
    KVTILT_RETURN_IF_ERROR(kvtilt::attend_prefill(chunks_, workspace_, parallel));
    for (const GgmlRows& part : rows)
      if (part.count >= chunk_tokens)
        KVTILT_RETURN_IF_ERROR(
            cache->append(part.sequence, layer, view(node.src[1], part), view(node.src[2], part)));
    return {};
  }

  kvtilt::Status status_;
  std::vector<kvtilt::AttendRequest> steps_;
  std::vector<kvtilt::PrefillRequest> chunks_;
  std::vector<std::byte> workspace_;
};
