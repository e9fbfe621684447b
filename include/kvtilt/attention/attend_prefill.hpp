// SPDX-License-Identifier: MIT
/// Attention of a chunk of a prompt over the cached past and over the chunk itself.
#pragma once

#include <kvtilt/attention/attend.hpp>
#include <kvtilt/cpu/half_rows.hpp>

namespace kvtilt {

/// One sequence's chunk in one layer. See attend_prefill() for the shapes.
struct PrefillRequest {
  LayerView past;
  TensorView queries;
  TensorView keys;
  TensorView values;
  OutputView out;
  AttendOptions options = {};
};

/// A longer prompt is attended chunk by chunk.
inline constexpr std::int64_t most_chunk_tokens = 1 << 20;

namespace detail {

inline Status check_request(const PrefillRequest& request) {
  const LayerView& past = request.past;
  const std::int64_t tokens = request.queries.tokens;
  KVTILT_RETURN_IF_ERROR(check_attention(past, request.queries, request.out, request.options));
  if (tokens > most_chunk_tokens)
    return Status::error(ErrorCode::InvalidArgument, "a chunk has at most %lld tokens, not %lld",
                         static_cast<long long>(most_chunk_tokens), static_cast<long long>(tokens));
  KVTILT_RETURN_IF_ERROR(check_rows(past.shape, request.keys, request.values, unnumbered_layer));
  if (request.keys.tokens != tokens)
    return Status::error(ErrorCode::InvalidArgument, "a chunk of %lld queries has %lld keys",
                         static_cast<long long>(tokens),
                         static_cast<long long>(request.keys.tokens));
  return check_kept(past, request.options, past.length, past.length + tokens);
}

/// One chunk and its fp16 copy, in blocks that are laid out like the tail of a sequence.
struct PrefillJob {
  const PrefillRequest* request;
  HeadLayout head;
  std::byte* blocks;

  /// Rounds one kv head to fp16, into `blocks`.
  void load(int kv_head) const {
    const std::int64_t tokens = request->keys.tokens;
    for (std::int64_t token = 0; token < tokens; token += chunk_block_tokens) {
      const std::int64_t block = kv_head * chunk_block_count(tokens) + token / chunk_block_tokens;
      const int count =
          static_cast<int>(std::min<std::int64_t>(chunk_block_tokens, tokens - token));
      cpu::write_half_rows(*request->past.kernels, request->keys, request->values,
                           {token, count, kv_head}, head,
                           blocks + static_cast<std::size_t>(block) * head.bytes(), 0);
    }
  }
};

/// Lays out a batch of chunks in the workspace; if that is null, only computes `bytes`.
struct PrefillWorkspace {
  std::span<Work> works;
  std::span<PrefillJob> jobs;
  std::byte* tiles;
  std::size_t bytes_per_tile = 0;
  std::size_t bytes;

  PrefillWorkspace(std::span<const PrefillRequest> requests, int workers, std::byte* workspace) {
    WorkspaceCarver carver(workspace);
    works = {carver.take<Work>(requests.size()), requests.size()};
    jobs = {carver.take<PrefillJob>(requests.size()), requests.size()};
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const PrefillRequest& request = requests[i];
      const LayerShape& shape = request.past.shape;
      Work work = make_work(request.past, request.queries, request.out, request.options,
                            request.past.length);
      work.chunk_tokens = request.queries.tokens;
      const HeadLayout head =
          head_layout(half_recipe(shape), shape.key_dim, shape.value_dim, chunk_block_tokens, 0);
      std::byte* blocks =
          carver.take<std::byte>(static_cast<std::size_t>(chunk_block_count(work.chunk_tokens)) *
                                 static_cast<std::size_t>(shape.kv_heads) * head.bytes());
      bytes_per_tile = std::max(bytes_per_tile, tile_bytes({&work, 1}));
      if (workspace == nullptr) continue;
      work.chunk_head = &(new (&jobs[i]) PrefillJob{&request, head, blocks})->head;
      work.chunk_blocks = blocks;
      new (&works[i]) Work(work);
    }
    tiles = carver.take<std::byte>(static_cast<std::size_t>(workers) * bytes_per_tile);
    bytes = carver.used() + page_alignment;
    if (workspace != nullptr) number_items(works);
  }
};

/// Rounds the chunks to fp16, one kv head at a time.
struct ChunkLoader {
  std::span<const PrefillJob> jobs;
  std::atomic<std::int64_t> next{0};

  static void run(void* argument, int) {
    ChunkLoader& loader = *static_cast<ChunkLoader*>(argument);
    for (std::int64_t item = loader.next++;; item = loader.next++) {
      std::int64_t rest = item;
      std::size_t job = 0;
      while (job < loader.jobs.size() && rest >= loader.jobs[job].request->past.shape.kv_heads)
        rest -= loader.jobs[job++].request->past.shape.kv_heads;
      if (job == loader.jobs.size()) return;
      loader.jobs[job].load(static_cast<int>(rest));
    }
  }
};

}  // namespace detail

/// Bytes of workspace that attend_prefill() needs for a batch, the chunks in fp16 included.
inline std::size_t attend_prefill_workspace_bytes(std::span<const PrefillRequest> requests,
                                                  int workers = 1) {
  return detail::PrefillWorkspace(requests, workers, nullptr).bytes;
}

/// The same for a single chunk of `tokens` tokens served by one worker.
inline std::size_t attend_prefill_workspace_bytes(const LayerView& past, std::int64_t tokens) {
  PrefillRequest request{past, {}, {}, {}, {}, {}};
  request.queries.tokens = tokens;
  return attend_prefill_workspace_bytes({&request, 1});
}

/// Computes attention for a chunk of n new tokens over the cached past and, causally and unquantized,
/// over the chunk itself. Call it before the chunk is appended. How a prompt is cut into chunks
/// changes these outputs, but not the bytes of the cache.
///
/// past       the layer before the chunk; its length is the position of the chunk's first token
/// queries    [n, query_heads, key_dim]
/// keys       [n, kv_heads, key_dim], after RoPE; rounded to fp16, as append will
/// values     [n, kv_heads, value_dim]; {} if they are in the keys
/// out, lse, options, error and failures are as for attend(). Keys or values that append would refuse
/// give undefined outputs.
/// workspace  attend_prefill_workspace_bytes(requests, parallel.workers) bytes
/// Cost       reads every page of the past once per kv head and tile of 16 query rows; no allocation.
///            Tiles are not split: a chunk keeps at most kv_heads * (n * query_heads / kv_heads / 16,
///            rounded up) workers busy. To verify a short draft behind a long past on more cores,
///            append it, call attend(), which splits, and truncate
inline Status attend_prefill(std::span<const PrefillRequest> requests,
                             std::span<std::byte> workspace, const ParallelFor& parallel = {}) {
  for (const PrefillRequest& request : requests)
    KVTILT_RETURN_IF_ERROR(detail::check_request(request));
  KVTILT_RETURN_IF_ERROR(detail::check_workers(parallel));
  if (detail::has_no_queries(requests)) return {};
  KVTILT_RETURN_IF_ERROR(detail::check_workspace(
      workspace, attend_prefill_workspace_bytes(requests, parallel.workers)));
  const detail::PrefillWorkspace layout(requests, parallel.workers,
                                        detail::align_workspace(workspace.data()));
  detail::ChunkLoader loader{layout.jobs};
  parallel(&detail::ChunkLoader::run, &loader);
  detail::run_batch(layout.works, layout.tiles, layout.bytes_per_tile, parallel);
  return {};
}

/// One sequence on the calling thread.
inline Status attend_prefill(const LayerView& past, const TensorView& queries,
                             const TensorView& keys, const TensorView& values,
                             const OutputView& out, const AttendOptions& options,
                             std::span<std::byte> workspace) {
  const PrefillRequest request{past, queries, keys, values, out, options};
  return attend_prefill({&request, 1}, workspace);
}

}  // namespace kvtilt
