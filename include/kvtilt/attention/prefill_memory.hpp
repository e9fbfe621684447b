// SPDX-License-Identifier: MIT
/// How much memory a chunked prefill will take: the cache, and the workspace of attend_prefill().
#pragma once

#include <kvtilt/attention/attend_prefill.hpp>
#include <kvtilt/cache/memory_plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvtilt {

/// The size of one call of attend_prefill().
struct PrefillStep {
  std::int64_t chunk_tokens = 512;  ///< per sequence; 1 to most_chunk_tokens
  int sequences = 1;                ///< per batch
  int workers = 1;                  ///< of its ParallelFor
};

struct PrefillMemory {
  MemoryPlan cache;
  std::size_t workspace_bytes = 0;  ///< one workspace serves all layers and chunks

  /// The most memory in use at any time.
  [[nodiscard]] std::size_t peak_bytes() const { return cache.reserved_bytes() + workspace_bytes; }
};

/// Computes the bytes for `sequences` sequences of `tokens` tokens that arrive chunk by chunk. For the
/// most tokens under a budget, subtract workspace_bytes from it and call most_tokens().
/// attend_memory.hpp has the workspace that decoding needs.
///
/// Fails  as plan_memory() does; with InvalidArgument if the step is out of range
/// Cost   that of plan_memory(), and time that grows with step.sequences
template <class FormatList = AllFormats>
Result<PrefillMemory> plan_prefill_memory(const CacheShape& shape, const Plan& plan,
                                          const CacheOptions& options, std::int64_t tokens,
                                          int sequences, const PrefillStep& step) {
  Result<detail::MemoryModel> model = detail::MemoryModel::make<FormatList>(shape, plan, options);
  if (!model) return std::move(model).take_status();
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens));
  KVTILT_RETURN_IF_ERROR(model->check_sequences(sequences));
  KVTILT_RETURN_IF_ERROR(detail::check_workers({step.workers, nullptr, nullptr}));
  if (step.chunk_tokens < 1 || step.chunk_tokens > most_chunk_tokens)
    return Status::error(ErrorCode::InvalidArgument, "chunk_tokens is %lld, must be 1 to %lld",
                         static_cast<long long>(step.chunk_tokens),
                         static_cast<long long>(most_chunk_tokens));
  if (step.sequences < 1 || step.sequences > sequences)
    return Status::error(ErrorCode::InvalidArgument,
                         "a step prefills %d sequences of %d: must be 1 or more, and not more",
                         step.sequences, sequences);
  Result<MemoryPlan> cache = model->plan(tokens, sequences);
  if (!cache) return std::move(cache).take_status();

  PrefillMemory memory{*cache, 0};
  for (const LayerStore& store : model->stores()) {
    if (store.shape.kv_heads == 0) continue;
    PrefillRequest request{store.empty_view(), {}, {}, {}, {}, {}};
    request.queries.tokens = step.chunk_tokens;
    const std::vector<PrefillRequest> batch(static_cast<std::size_t>(step.sequences), request);
    memory.workspace_bytes =
        std::max(memory.workspace_bytes, attend_prefill_workspace_bytes(batch, step.workers));
  }
  return memory;
}

}  // namespace kvtilt
