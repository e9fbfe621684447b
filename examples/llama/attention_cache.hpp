// SPDX-License-Identifier: MIT
// The interface between the model and whatever keeps its keys and values.
#pragma once

#include "fail.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace llama {

struct CacheUsage {
  std::size_t bytes = 0;           // in use: codes, metadata, 16-bit tokens, tables
  std::size_t reserved_bytes = 0;  // allocated, used or not
  double effective_bits = 0;       // 8 * bytes / numbers kept
};

/// The keys and values of one sequence, in all layers.
class AttentionCache {
 public:
  AttentionCache() = default;
  AttentionCache(const AttentionCache&) = delete;
  AttentionCache& operator=(const AttentionCache&) = delete;
  virtual ~AttentionCache() = default;

  /// Forgets the sequence and makes room for another one of at most `positions` tokens.
  virtual void restart(int positions) = 0;

  /// Appends the next `tokens` tokens of a layer and computes the attention of each over all tokens
  /// up to itself.
  ///
  /// queries [tokens, query_heads, head_dim], rotated
  /// turned  the same, turned back by removed() positions: they ask the tokens in front of the gap;
  ///         not read while there is none
  /// keys    [tokens, kv_heads, head_dim], rotated
  /// values  [tokens, kv_heads, head_dim]
  /// out     [tokens, query_heads, head_dim]
  /// A chunk of one token and up to draft_room() more reads all tokens out of the cache and gives
  /// the same bits as one call per token. In a longer chunk, the tokens see each other before they
  /// are quantized. Throws if the cache refuses the numbers or is full.
  virtual void attend(int layer, int tokens, const float* queries, const float* turned,
                      const float* keys, const float* values, float* out) = 0;

  /// Number of tokens after the next one that truncate() can take back exactly.
  [[nodiscard]] virtual int draft_room() const = 0;

  /// Forgets every token from `length` on, in all layers.
  virtual void truncate(int length) = 0;

  /// Removes the tokens at positions `from` to `to` - 1, which must be whole pages of every layer,
  /// and makes room for as many new ones. Later tokens keep their positions. A sequence has one gap:
  /// each removal begins where the one before ended. Throws if it does not, or the cache refuses.
  virtual void remove(int from, int to) = 0;
  /// Tokens removed since the sequence began: those in front of the gap are this much nearer to later
  /// ones than their positions say.
  [[nodiscard]] virtual int removed() const = 0;

  /// save() returns the sequence as bytes; load() replaces the sequence by a saved one with room
  /// for `more` tokens. Both throw if the cache does not support it, load() also for another
  /// cache's bytes.
  [[nodiscard]] virtual std::vector<std::byte> save() const { refuse_saving(); }
  virtual void load(std::span<const std::byte> /*saved*/, int /*more*/) { refuse_saving(); }

  /// The position of the next token, in every layer: removed tokens count.
  [[nodiscard]] virtual int length() const = 0;
  /// Tokens in the cache, in every layer.
  [[nodiscard]] int kept() const { return length() - removed(); }
  [[nodiscard]] virtual CacheUsage usage() const = 0;
  /// 8 * bytes of a full page / its numbers; 16 if there are no pages.
  [[nodiscard]] virtual double page_bits() const = 0;
  /// Whether any attend() for the newest token or chunk read a sealed page.
  [[nodiscard]] virtual bool touched_codes() const = 0;

 private:
  [[noreturn]] static void refuse_saving() {
    fail("only kvtilt's caches can be saved and loaded, not this one");
  }
};

}  // namespace llama
