// SPDX-License-Identifier: MIT
/// Attention of a prompt's chunk over the cached past and over itself.
#pragma once

#include <kvtilt/attention/attend.hpp>
#include <kvtilt/cpu/half_rows.hpp>

namespace kvtilt {

namespace detail {

/// Tokens per 16-bit block of the chunk.
inline constexpr int chunk_block_tokens = 64;

/// The chunk of one kv head as 16-bit blocks, laid out like the tail of a sequence.
class PrefillChunk {
 public:
  PrefillChunk(const LayerShape& shape, std::int64_t tokens, WorkspaceCarver& carver)
      : head_(head_layout(Recipe{}, shape.key_dim, shape.value_dim, chunk_block_tokens, 0)),
        tokens_(tokens) {
    blocks_ = carver.take<std::byte>(static_cast<std::size_t>(block_count()) * head_.bytes());
  }

  /// Rounds one kv head's keys and values to fp16, as append will.
  void load(const cpu::Kernels& kernels, const TensorView& keys, const TensorView& values,
            int kv_head) {
    for (std::int64_t token = 0; token < tokens_; ++token) {
      std::byte* block =
          blocks_ + static_cast<std::size_t>(token / chunk_block_tokens) * head_.bytes();
      cpu::write_half_token(kernels, keys, values, token, kv_head, head_, block,
                            static_cast<int>(token % chunk_block_tokens));
    }
  }

  void add_to(AttentionTile& tile, std::int64_t first_position) const {
    for (std::int64_t index = 0; index < block_count(); ++index) {
      const std::int64_t first = index * chunk_block_tokens;
      tile.add_page(
          head_, blocks_ + static_cast<std::size_t>(index) * head_.bytes(), first_position + first,
          static_cast<int>(std::min<std::int64_t>(chunk_block_tokens, tokens_ - first)), false);
    }
  }

 private:
  [[nodiscard]] std::int64_t block_count() const {
    return (tokens_ + chunk_block_tokens - 1) / chunk_block_tokens;
  }

  HeadLayout head_;
  std::int64_t tokens_;
  std::byte* blocks_;
};

}  // namespace detail

/// Bytes attend_prefill() needs for chunks of up to `tokens` tokens: one kv head of the chunk in
/// 16 bits beside attend's own.
inline std::size_t attend_prefill_workspace_bytes(const LayerView& past, std::int64_t tokens) {
  detail::WorkspaceCarver measure(nullptr);
  const detail::AttentionTile tile(past.shape,
                                   std::max(past.max_page_tokens, detail::chunk_block_tokens),
                                   past.kernels, measure);
  const detail::PrefillChunk chunk(past.shape, tokens, measure);
  return measure.used() + page_alignment;
}

/// Attention of n new tokens over the cached past and causally over themselves, unquantized. Call
/// it before the chunk is appended; cache bytes do not depend on chunking, these outputs do.
///
/// past       the layer before the chunk; its length is the position of the chunk's first token
/// queries    [n, query_heads, key_dim]
/// keys       [n, kv_heads, key_dim], after RoPE; rounded to fp16, as append will
/// values     [n, kv_heads, value_dim]
/// out, lse, error, failures: as attend(). Values that append would refuse give undefined outputs.
/// workspace  attend_prefill_workspace_bytes(past, n) bytes
inline Status attend_prefill(const LayerView& past, const TensorView& queries,
                             const TensorView& keys, const TensorView& values,
                             const OutputView& out, const AttendOptions& options,
                             std::span<std::byte> workspace) {
  KVTILT_RETURN_IF_ERROR(detail::check_attention(past, queries, out, options));
  const LayerShape& shape = past.shape;
  if (keys.tokens != queries.tokens || values.tokens != queries.tokens ||
      keys.heads != shape.kv_heads || values.heads != shape.kv_heads || keys.dim != shape.key_dim ||
      values.dim != shape.value_dim)
    return Status::error(
        ErrorCode::InvalidArgument,
        "keys are [%lld, %d, %d] and values [%lld, %d, %d]; expected [%lld, %d, %d] and "
        "[%lld, %d, %d]",
        static_cast<long long>(keys.tokens), keys.heads, keys.dim,
        static_cast<long long>(values.tokens), values.heads, values.dim,
        static_cast<long long>(queries.tokens), shape.kv_heads, shape.key_dim,
        static_cast<long long>(queries.tokens), shape.kv_heads, shape.value_dim);
  if (queries.tokens == 0) return {};
  if (keys.data == nullptr || values.data == nullptr)
    return Status::error(ErrorCode::InvalidArgument, "keys or values are null");
  KVTILT_RETURN_IF_ERROR(
      detail::check_workspace(workspace, attend_prefill_workspace_bytes(past, queries.tokens)));

  detail::WorkspaceCarver carver(detail::align_workspace(workspace.data()));
  detail::AttentionTile tile(shape, std::max(past.max_page_tokens, detail::chunk_block_tokens),
                             past.kernels, carver);
  detail::PrefillChunk chunk(shape, queries.tokens, carver);
  int loaded_head = -1;
  detail::attend_rows(past, queries, out, options, past.length, tile,
                      [&](int kv_head, detail::AttentionTile& rows) {
                        if (loaded_head != kv_head)
                          chunk.load(*past.kernels, keys, values, kv_head);
                        loaded_head = kv_head;
                        detail::add_cached_pages(past, kv_head, rows);
                        chunk.add_to(rows, past.length);
                      });
  return {};
}

}  // namespace kvtilt
