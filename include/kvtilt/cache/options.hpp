// SPDX-License-Identifier: MIT
/// How a cache is set up, and what can be set up.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/cache/token_placement.hpp>
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

namespace kvtilt {

struct CacheOptions {
  int page_tokens = 64;  ///< 32, 64 or 128
  int sink_tokens = 4;   ///< first tokens kept in 16 bits for ever, 0 to 1024
  /// Newest tokens kept in 16 bits, at least; 0 to 65536. A layer with a window keeps what each of
  /// these tokens sees, so at least as many should stay as a step drafts: with fewer, attend() can
  /// refuse a step's oldest queries and truncate() to take its tokens back.
  int recent_tokens = 128;
  int max_sequences = 1024;
  /// Bounds MemoryReport::reserved_bytes; 0: no limit. Blocks of closed sequences count as long as
  /// they are kept for the next ones of their size: what does not fit otherwise takes the memory of
  /// all slabs (PagePool, 32 MiB at most) that have no block in use. With nothing open, whatever
  /// plan_memory() puts within the limit fits.
  std::size_t max_bytes = 0;
  std::optional<Isa> isa = {};  ///< forces an instruction set; otherwise KVTILT_ISA, else the best
  Allocator allocator = default_allocator();
  /// All pages and 16-bit blocks come out of this memory, if it is not empty; only tables then
  /// still come from the allocator. It serves one cache at a time, starts anywhere (up to 63 bytes
  /// are lost to alignment), is never freed, and is the caller's again when the cache is gone. It
  /// passes from one size of block to another as max_bytes does, but nothing in it moves: between
  /// slabs in use, pieces shorter than the slabs of a reservation do not serve it.
  std::span<std::byte> page_memory = {};
};

/// More than any context: keeps sums of lengths and sizes far from overflow.
inline constexpr std::int64_t max_tokens = std::int64_t{1} << 40;

inline Status check_tokens(std::int64_t tokens) {
  if (tokens >= 0 && tokens <= max_tokens) return {};
  return Status::error(ErrorCode::InvalidArgument, "cannot reserve %lld tokens, only 0 to 2^40",
                       static_cast<long long>(tokens));
}

/// Where tokens go in a layer without a window.
constexpr TokenPlacement token_placement(const CacheOptions& options) {
  return {options.page_tokens, options.sink_tokens, options.recent_tokens, 0};
}

inline Status check_options(const CacheOptions& options) {
  const auto fail = [](const char* name, int value, const char* rule) {
    return Status::error(ErrorCode::InvalidArgument, "%s is %d, must be %s", name, value, rule);
  };
  if (!is_page_size(options.page_tokens))
    return fail("page_tokens", options.page_tokens, "32, 64 or 128");
  if (options.sink_tokens < 0 || options.sink_tokens > 1024)
    return fail("sink_tokens", options.sink_tokens, "0 to 1024");
  if (options.recent_tokens < 0 || options.recent_tokens > 65536)
    return fail("recent_tokens", options.recent_tokens, "0 to 65536");
  if (options.max_sequences < 1 || options.max_sequences > (1 << 20))
    return fail("max_sequences", options.max_sequences, "1 to 1048576");
  if (options.page_memory.data() == nullptr && !options.page_memory.empty())
    return Status::error(ErrorCode::InvalidArgument, "page_memory is null, with %zu bytes",
                         options.page_memory.size());
  return {};
}

/// Whether this build serves a layer of this shape with this recipe: Ok, or the reason why not.
/// KVCache::create asks the same question, so nothing is refused later.
template <class FormatList = AllFormats>
Status supports(const LayerShape& shape, const Recipe& recipe, int page_tokens = 64) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape, 0));
  if (!is_page_size(page_tokens)) {
    CacheOptions options;
    options.page_tokens = page_tokens;
    return check_options(options);
  }
  Result<Recipe> resolved = resolve_recipe(recipe, shape, page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  if (recipe.key.quantized() && !FormatList::keys::contains(recipe.key.bits))
    return Status::error(ErrorCode::Unsupported,
                         "keys of %d bits are not in this build's Keys list", recipe.key.bits);
  if (recipe.value.quantized() && !FormatList::values::contains(recipe.value.bits))
    return Status::error(ErrorCode::Unsupported,
                         "values of %d bits are not in this build's Values list",
                         recipe.value.bits);
  return {};
}

}  // namespace kvtilt
