// SPDX-License-Identifier: MIT
// The one thing the model knows about where its keys and values are kept.
#pragma once

#include "fail.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace llama {

struct CacheUsage {
  std::size_t bytes = 0;           // in use: codes, metadata, 16-bit tokens, tables
  std::size_t reserved_bytes = 0;  // taken from the system, used or not
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

  /// Takes the next `tokens` tokens of a layer, and attends to everything up to each of them.
  ///
  /// queries [tokens, query_heads, head_dim], rotated
  /// keys    [tokens, kv_heads, head_dim], rotated
  /// values  [tokens, kv_heads, head_dim]
  /// out     [tokens, query_heads, head_dim]
  /// A token and up to draft_room() more are read back out of the cache, to the same bits as one
  /// after the other; of a longer chunk, each may see the others before they are quantized. Throws
  /// when the cache refuses the numbers or is full.
  virtual void attend(int layer, int tokens, const float* queries, const float* keys,
                      const float* values, float* out) = 0;

  /// Tokens behind the next one that truncate() can take back without a trace.
  [[nodiscard]] virtual int draft_room() const = 0;

  /// Forgets every token from `length` on, in all layers.
  virtual void truncate(int length) = 0;

  /// The sequence as bytes, and a sequence of such bytes with room for `more` tokens instead of the one
  /// there is. Throw where the cache cannot, or where the bytes are another cache's.
  [[nodiscard]] virtual std::vector<std::byte> save() const { refuse_saving(); }
  virtual void load(std::span<const std::byte> /*saved*/, int /*more*/) { refuse_saving(); }

  /// Tokens in the cache, in every layer.
  [[nodiscard]] virtual int length() const = 0;
  [[nodiscard]] virtual CacheUsage usage() const = 0;
  /// 8 * bytes of a full page / its numbers; 16 where there are no pages.
  [[nodiscard]] virtual double page_bits() const = 0;
  /// Whether an attend() since the last token began read a sealed page.
  [[nodiscard]] virtual bool touched_codes() const = 0;

 private:
  [[noreturn]] static void refuse_saving() {
    fail("only kvtilt's caches can be saved and loaded, not this one");
  }
};

}  // namespace llama
