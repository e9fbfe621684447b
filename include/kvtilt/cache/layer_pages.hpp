// SPDX-License-Identifier: MIT
/// Quantized pages without KVCache, for an engine with its own memory, free lists and block tables.
#pragma once

#include <kvtilt/cache/layer_store.hpp>
#include <kvtilt/cpu/kernels.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// Converts a layer's tokens as KVCache does, but manages no memory: write() stores tokens in 16-bit
/// blocks, seal() quantizes a full block into a page, and view() lets attention read any table of
/// both. The bytes are those of a KVCache with the same shape, recipes and page_tokens.
///
/// One object serves all layers and sequences of the same shape and recipes. The engine keeps track of
/// its blocks and pages; each must start at a multiple of page_alignment.
/// Threads: all members are const; concurrent access to blocks and pages follows the rules of C++.
class LayerPages {
 public:
  /// Checks the arguments and makes the object.
  ///
  /// recipes  one for all kv heads, or one per kv head
  /// Fails    as KVCache::create does, and for a shape that keeps no cache
  template <class FormatList = AllFormats>
  static Result<LayerPages> create(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                   int page_tokens = 64, std::optional<Isa> isa = {});

  /// Token slots of each block and page.
  [[nodiscard]] int page_tokens() const { return store_.placement.page_tokens; }
  /// Bytes of a quantized page (Sealed) or of a 16-bit block (Tail and Sinks are the same). Attention
  /// treats Tail and Sinks alike, except that keep_sinks makes the tokens of Sinks entries visible
  /// outside the window. It does not know sinks in a chunk of attend_prefill(): a chunk that contains
  /// them must not be longer than the window.
  [[nodiscard]] std::size_t bytes(PageKind kind) const { return store_.layout(kind).bytes; }

  /// Stores n tokens in the slots first_slot to first_slot + n - 1 of a 16-bit block.
  ///
  /// keys    [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; rounded to fp16
  /// values  [n, kv_heads, value_dim], likewise; {} if they are in the keys
  /// block   bytes(PageKind::Tail) bytes
  /// Fails   InvalidArgument (shapes, slots, block), InvalidValue (NaN, infinity, too large to seal
  ///         with the recipe; names token, head and channel); nothing is written then
  Status write(const TensorView& keys, const TensorView& values, int first_slot,
               std::byte* block) const;

  /// Quantizes a 16-bit block, all slots of which must have been written, into a page. The block may
  /// be reused afterwards.
  ///
  /// page   bytes(PageKind::Sealed) bytes that do not overlap the block
  /// Fails  InvalidArgument (null, misaligned or overlapping); nothing is written then
  Status seal(const std::byte* block, std::byte* page) const;

  /// Makes a view of one layer of one sequence for attend() and attend_prefill(). Positions that no
  /// page holds are not attended to. Valid while `pages`, their bytes and this object stay in place.
  ///
  /// pages   in order of position: data, first_position, tokens (1 to page_tokens) and kind;
  ///         `references` is not used
  /// length  one past the newest position: query i of n has position length - n + i
  /// Fails   InvalidArgument, naming the first invalid entry
  /// Cost    reads every entry, but no page
  [[nodiscard]] Result<LayerView> view(std::span<const PageEntry> pages, std::int64_t length) const;

 private:
  LayerPages(LayerStore store, const cpu::Kernels* kernels)
      : store_(std::move(store)), kernels_(kernels) {}

  static bool misplaced(const std::byte* memory) {
    return memory == nullptr || reinterpret_cast<std::uintptr_t>(memory) % page_alignment != 0;
  }
  static Status misplaced_error(const char* what, const std::byte* memory) {
    return Status::error(ErrorCode::InvalidArgument, "the %s is at %p, not at a multiple of %d",
                         what, static_cast<const void*>(memory), page_alignment);
  }
  Status check_page(const PageEntry& page, std::size_t index, std::int64_t start,
                    std::int64_t length) const;

  LayerStore store_;
  const cpu::Kernels* kernels_;
};

template <class FormatList>
Result<LayerPages> LayerPages::create(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                      int page_tokens, std::optional<Isa> isa) {
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  KVTILT_RETURN_IF_ERROR(check_shape(shape, unnumbered_layer));
  if (shape.kv_heads == 0)
    return Status::error(ErrorCode::InvalidArgument, "kv_heads is 0: there is nothing to keep");
  Result<std::vector<Recipe>> resolved = resolve_recipes(recipes, shape, page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  for (const Recipe& recipe : recipes)
    KVTILT_RETURN_IF_ERROR(supports<FormatList>(shape, recipe, page_tokens));
  Result<Isa> active = active_isa(isa);
  if (!active) return std::move(active).take_status();
  // As many sinks as tokens in a page make their blocks the same as those of the tail.
  return LayerPages(LayerStore::make(shape, *resolved, {page_tokens, page_tokens, 0, shape.window}),
                    cpu::kernels<FormatList>(*active));
}

inline Status LayerPages::write(const TensorView& keys, const TensorView& values, int first_slot,
                                std::byte* block) const {
  KVTILT_RETURN_IF_ERROR(detail::check_rows(store_.shape, keys, values, unnumbered_layer));
  if (first_slot < 0 || first_slot > page_tokens() || keys.tokens > page_tokens() - first_slot)
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld tokens from slot %d on do not fit a block of %d",
                         static_cast<long long>(keys.tokens), first_slot, page_tokens());
  if (misplaced(block)) return misplaced_error("block", block);
  KVTILT_RETURN_IF_ERROR(store_.check_values(*kernels_, keys, values, unnumbered_layer));
  store_.write_tokens(*kernels_, keys, values, 0, static_cast<int>(keys.tokens), PageKind::Tail,
                      block, first_slot);
  return {};
}

inline Status LayerPages::seal(const std::byte* block, std::byte* page) const {
  if (misplaced(block)) return misplaced_error("block", block);
  if (misplaced(page)) return misplaced_error("page", page);
  const auto from = reinterpret_cast<std::uintptr_t>(block);
  const auto to = reinterpret_cast<std::uintptr_t>(page);
  if (to < from + bytes(PageKind::Tail) && from < to + bytes(PageKind::Sealed))
    return Status::error(ErrorCode::InvalidArgument,
                         "the page at %p overlaps the block at %p that is to be sealed into it",
                         static_cast<const void*>(page), static_cast<const void*>(block));
  store_.fill_page(*kernels_, {block, page});
  return {};
}

inline Status LayerPages::check_page(const PageEntry& page, std::size_t index, std::int64_t start,
                                     std::int64_t length) const {
  if (static_cast<int>(page.kind) >= page_kinds || misplaced(page.data))
    return Status::error(ErrorCode::InvalidArgument,
                         "page %zu is at %p, not at a multiple of %d, or of no known kind", index,
                         static_cast<const void*>(page.data), page_alignment);
  if (page.tokens < 1 || page.tokens > page_tokens())
    return Status::error(ErrorCode::InvalidArgument, "page %zu has %d tokens, must have 1 to %d",
                         index, page.tokens, page_tokens());
  if (page.first_position < start || page.first_position > length - page.tokens)
    return Status::error(ErrorCode::InvalidArgument,
                         "page %zu holds %d positions from %lld on; expected them in order, from "
                         "%lld on and before %lld",
                         index, page.tokens, static_cast<long long>(page.first_position),
                         static_cast<long long>(start), static_cast<long long>(length));
  return {};
}

inline Result<LayerView> LayerPages::view(std::span<const PageEntry> pages,
                                          std::int64_t length) const {
  if (length < 0 || length > max_tokens || pages.size() > std::numeric_limits<std::int32_t>::max())
    return Status::error(ErrorCode::InvalidArgument, "%zu pages and %lld tokens are no sequence",
                         pages.size(), static_cast<long long>(length));
  std::int64_t start = 0;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    KVTILT_RETURN_IF_ERROR(check_page(pages[i], i, start, length));
    start = pages[i].first_position + pages[i].tokens;
  }
  LayerView view = store_.empty_view();
  view.pages = pages.data();
  view.page_count = static_cast<std::int32_t>(pages.size());
  view.length = length;
  view.kernels = kernels_;
  return view;
}

}  // namespace kvtilt
