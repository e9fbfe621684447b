// SPDX-License-Identifier: MIT
/// Reads a saved sequence, and checks it against the cache that is to load it.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/page/saved_sequence.hpp>
#include <kvtilt/page/token_placement.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

namespace kvtilt {

/// A reader of one saved sequence. Reads its bytes in place and owns nothing.
class SavedReader {
 public:
  /// Checks the header.
  ///
  /// Fails  Corrupt (not a saved sequence, or truncated), Unsupported (another version)
  static Result<SavedReader> open(std::span<const std::byte> image) {
    SavedReader reader(image);
    KVTILT_RETURN_IF_ERROR(reader.check_header());
    return reader;
  }

  /// Checks all tables against a cache. The members below, except verify_checksum() and length(), may
  /// be called only after this.
  ///
  /// layers  of the cache; each has `shape` and `layouts`
  /// Fails   InvalidArgument (from a cache of another shape, plan, options or model; names what
  ///         differs), Corrupt
  template <class Layers>
  Status check_tables(const Layers& layers, const TokenPlacement& placement,
                      std::uint64_t fingerprint) const {
    KVTILT_RETURN_IF_ERROR(check_options(static_cast<int>(layers.size()), placement, fingerprint));
    std::uint64_t end = sizeof(SavedHeader) + layers.size() * sizeof(SavedLayer);
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
      KVTILT_RETURN_IF_ERROR(
          check_layer(static_cast<int>(layer), layers[layer].shape, layers[layer].layouts, end));
    return end == image_.size() ? Status{} : damaged("bytes lie behind its last layer");
  }

  /// Corrupt if a number in sinks, tail or metadata is NaN, infinite or too large: no cache stores
  /// such, so the image is forged. After check_tables().
  template <class Layers>
  [[nodiscard]] Status check_values(const Layers& layers) const {
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      if (layers[layer].shape.kv_heads == 0) continue;
      const LayerLayouts& layouts = layers[layer].layouts;
      const SavedPlaces own = places(layer, layouts);
      for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail})
        for (std::int64_t i = 0; i < own.count(kind); ++i)
          if (!holds_numbers(layouts, kind, block(own, kind, i)))
            return Status::error(ErrorCode::Corrupt,
                                 "the saved sequence was forged: layer %zu holds what no cache "
                                 "stores: NaN, infinity or too large a number",
                                 layer);
    }
    return {};
  }

  /// Corrupt unless the checksum matches. Cost: one pass over all bytes.
  [[nodiscard]] Status verify_checksum() const { return compare_checksum(saved_checksum(image_)); }
  /// The same for callers that already have the sum of all blocks; after check_tables().
  template <class Layers>
  Status verify_checksum(std::uint64_t blocks, const Layers& layers) const {
    const std::size_t heads = sizeof(SavedHeader) + layers.size() * sizeof(SavedLayer);
    std::uint64_t sum = saved_checksum(image_.first(heads)) + blocks;
    for (std::size_t i = 0; i < layers.size(); ++i)
      if (layers[i].shape.kv_heads > 0) {
        const SavedPlaces own = places(i, layers[i].layouts);
        sum += saved_sum(image_, own.recipes, own.first_block());
      }
    return compare_checksum(sum);
  }

  [[nodiscard]] std::int64_t length() const { return header_.length; }
  [[nodiscard]] SavedLayer layer(std::size_t index) const {
    return read<SavedLayer>(sizeof(SavedHeader) + index * sizeof(SavedLayer));
  }
  [[nodiscard]] SavedPlaces places(std::size_t index, const LayerLayouts& layouts) const {
    return {header_, layer(index), layouts};
  }
  [[nodiscard]] SavedPage page(const SavedPlaces& places, std::int64_t index) const {
    return read<SavedPage>(places.pages + static_cast<std::uint64_t>(index) * sizeof(SavedPage));
  }
  [[nodiscard]] const std::byte* block(const SavedPlaces& places, PageKind kind,
                                       std::int64_t index) const {
    return image_.data() + places.block(kind, index);
  }

 private:
  explicit SavedReader(std::span<const std::byte> image) : image_(image) {}

  template <class T>
  [[nodiscard]] T read(std::uint64_t at) const {
    T record;
    std::memcpy(&record, image_.data() + at, sizeof record);
    return record;
  }
  static Status damaged(const char* what) {
    return Status::error(ErrorCode::Corrupt, "the saved sequence is damaged: %s", what);
  }
  static Status differs(const char* name, long long saved, long long own) {
    return Status::error(ErrorCode::InvalidArgument,
                         "the saved sequence is of another cache: %s is %lld there, %lld here",
                         name, saved, own);
  }
  static Status differs(std::size_t layer, const char* name, long long saved, long long own) {
    return Status::error(
        ErrorCode::InvalidArgument,
        "the saved sequence is of another cache: layer %zu: %s is %lld there, %lld here", layer,
        name, saved, own);
  }

  [[nodiscard]] Status compare_checksum(std::uint64_t sum) const {
    return sum == header_.checksum ? Status{} : damaged("its checksum is another");
  }
  static bool holds_numbers(const LayerLayouts& layouts, PageKind kind, const std::byte* block);
  Status check_header();
  Status check_options(int layers, const TokenPlacement& placement,
                       std::uint64_t fingerprint) const;
  Status check_layer(int index, const LayerShape& shape, const LayerLayouts& layouts,
                     std::uint64_t& end) const;
  Status check_recipes(int index, const SavedPlaces& places, const LayerLayouts& layouts) const;
  Status check_positions(const SavedLayer& layer) const;
  Status check_pages(const SavedLayer& layer, const SavedPlaces& places) const;

  std::span<const std::byte> image_;
  SavedHeader header_;
};

inline bool SavedReader::holds_numbers(const LayerLayouts& layouts, PageKind kind,
                                       const std::byte* block) {
  // Four halves at a time: a magnitude above the limit plus the headroom carries into its sign bit.
  // All sizes are multiples of 8 bytes.
  const auto up_to = [](const std::byte* halves, std::size_t bytes, float limit) {
    constexpr std::uint64_t each = 0x0001000100010001u;
    const std::uint64_t headroom = each * (0x7fffu - to_f16(limit).bits);
    std::uint64_t carries = 0;
    for (std::size_t i = 0; i < bytes; i += sizeof carries) {
      std::uint64_t four;
      std::memcpy(&four, halves + i, sizeof four);
      carries |= (four & 0x7fff * each) + headroom;
    }
    return (carries & 0x8000 * each) == 0;
  };
  const std::vector<HeadLayout>& heads = layouts[static_cast<std::size_t>(kind)].heads;
  const std::vector<HeadLayout>& sealed = layouts[static_cast<std::size_t>(PageKind::Sealed)].heads;
  for (std::size_t head = 0; head < heads.size(); ++head)
    for (const auto tensor : {&HeadLayout::key, &HeadLayout::value}) {
      const TensorLayout& own = heads[head].*tensor;
      const std::byte* at = block + heads[head].offset;
      const bool good = own.format.quantized()
                            ? up_to(at + own.metadata, own.metadata_bytes(), f16_max)
                            : up_to(at + own.codes, code_bytes(own.matrix, half_bits),
                                    largest_magnitude((sealed[head].*tensor).format));
      if (!good) return false;
    }
  return true;
}

inline Status SavedReader::check_header() {
  if (image_.size() < sizeof header_)
    return Status::error(ErrorCode::Corrupt,
                         "%zu bytes are no saved sequence: its header alone has %zu", image_.size(),
                         sizeof header_);
  header_ = read<SavedHeader>(0);
  if (header_.magic != SavedHeader::magic_number)
    return Status::error(ErrorCode::Corrupt,
                         "the bytes are no saved sequence: they start otherwise");
  if (header_.version != SavedHeader::newest)
    return Status::error(ErrorCode::Unsupported,
                         "the saved sequence has version %u of its format; this build reads %u",
                         header_.version, SavedHeader::newest);
  if (header_.bytes != image_.size() || image_.size() % page_alignment != 0)
    return Status::error(ErrorCode::Corrupt,
                         "the saved sequence has %llu bytes by its header; there are %zu",
                         static_cast<unsigned long long>(header_.bytes), image_.size());
  return {};
}

inline Status SavedReader::check_options(int layers, const TokenPlacement& placement,
                                         std::uint64_t fingerprint) const {
  if (header_.layers != layers) return differs("the number of layers", header_.layers, layers);
  if (header_.page_tokens != placement.page_tokens)
    return differs("page_tokens", header_.page_tokens, placement.page_tokens);
  if (header_.sink_tokens != placement.sink_tokens)
    return differs("sink_tokens", header_.sink_tokens, placement.sink_tokens);
  if (header_.recent_tokens != placement.recent_tokens)
    return differs("recent_tokens", header_.recent_tokens, placement.recent_tokens);
  if (header_.fingerprint != fingerprint)
    return Status::error(ErrorCode::InvalidArgument,
                         "the saved sequence is of another model: the fingerprint is %016llx "
                         "there, %016llx here",
                         static_cast<unsigned long long>(header_.fingerprint),
                         static_cast<unsigned long long>(fingerprint));
  if (header_.reserved != 0) return damaged("reserved bytes are not zeros");
  if (header_.length < 0 || header_.length > max_tokens) return damaged("its length");
  if (static_cast<std::uint64_t>(layers) > image_.size() / sizeof(SavedLayer) - 1)
    return damaged("its layers do not fit");
  return {};
}

inline Status SavedReader::check_recipes(int index, const SavedPlaces& places,
                                         const LayerLayouts& layouts) const {
  std::uint64_t at = places.recipes;
  int head = 0;
  for (const HeadLayout& own : layouts[static_cast<std::size_t>(PageKind::Sealed)].heads) {
    const SavedRecipe saved = read<SavedRecipe>(at);
    if (saved.key.reserved != 0 || saved.value.reserved != 0)
      return damaged("reserved bytes are not zeros");
    if (saved != saved_recipe(own)) {
      const bool keys = saved.key != saved_recipe(own).key;
      const SavedFormat there = keys ? saved.key : saved.value;
      const SavedFormat here = keys ? saved_recipe(own).key : saved_recipe(own).value;
      const auto along = [](const SavedFormat& format) {
        return format.granularity == 0 ? "channel" : "token";
      };
      const auto rule = [](const SavedFormat& format) {
        return format.rule <= 2 ? to_string(static_cast<RangeRule>(format.rule)) : "unknown";
      };
      return Status::error(ErrorCode::InvalidArgument,
                           "the saved sequence is of another cache: layer %d, kv head %d: %s have "
                           "%d bits per %s in groups of %d by rule %s there, %d bits per %s in "
                           "groups of %d by rule %s here",
                           index, head, keys ? "keys" : "values", there.bits, along(there),
                           there.group, rule(there), here.bits, along(here), here.group,
                           rule(here));
    }
    at += sizeof(SavedRecipe);
    ++head;
  }
  return {};
}

/// Corrupt unless append, truncate, remove and a window can produce these positions.
inline Status SavedReader::check_positions(const SavedLayer& layer) const {
  const std::int64_t sinks = header_.sink_tokens;
  if (layer.tail_start < sinks || layer.tail_start > std::max(sinks, header_.length))
    return damaged("its tail starts elsewhere");
  if (header_.length - layer.tail_start >= header_.recent_tokens + header_.page_tokens)
    return damaged("its tail is too long");
  if (layer.first_kept < 0 || layer.first_kept > std::min(header_.length, layer.tail_start) ||
      (layer.window == 0 && layer.first_kept != 0))
    return damaged("its window has freed too much");
  // Each page has an entry of 16 bytes in the image: this bound keeps offsets from overflow.
  if (layer.pages < 0 ||
      static_cast<std::uint64_t>(layer.pages) > image_.size() / sizeof(SavedPage))
    return damaged("it has too many pages");
  return {};
}

inline Status SavedReader::check_pages(const SavedLayer& layer, const SavedPlaces& places) const {
  std::int64_t end = std::max<std::int64_t>(header_.sink_tokens, layer.first_kept);
  for (std::int32_t i = 0; i < layer.pages; ++i) {
    const SavedPage saved = page(places, i);
    if (saved.tokens < 1 || saved.tokens > header_.page_tokens || saved.first_position < end ||
        saved.first_position > layer.tail_start - saved.tokens || saved.reserved != 0)
      return damaged("a page of it is out of place");
    end = saved.first_position + saved.tokens;
  }
  return {};
}

inline Status SavedReader::check_layer(int index, const LayerShape& shape,
                                       const LayerLayouts& layouts, std::uint64_t& end) const {
  const SavedLayer saved = layer(static_cast<std::size_t>(index));
  const struct {
    const char* name;
    long long saved;
    long long own;
  } numbers[] = {{"kv_heads", saved.kv_heads, shape.kv_heads},
                 {"key_dim", saved.key_dim, shape.key_dim},
                 {"value_dim", saved.value_dim, shape.value_dim},
                 {"window", saved.window, shape.window},
                 {"keep_sinks", saved.keep_sinks, shape.keep_sinks ? 1 : 0},
                 {"values_in_keys", saved.values_in_keys, shape.values_in_keys ? 1 : 0}};
  const int compared = shape.kv_heads == 0 ? 1 : 6;
  for (int i = 0; i < compared; ++i)
    if (numbers[i].saved != numbers[i].own)
      return differs(static_cast<std::size_t>(index), numbers[i].name, numbers[i].saved,
                     numbers[i].own);
  if (saved.offset != end || std::any_of(std::begin(saved.reserved), std::end(saved.reserved),
                                         [](std::int32_t word) { return word != 0; }))
    return damaged("a layer of it lies elsewhere");
  if (shape.kv_heads == 0) {
    SavedLayer none;
    none.offset = end;
    return std::memcmp(&saved, &none, sizeof saved) == 0
               ? Status{}
               : damaged("a layer without a cache has numbers");
  }
  KVTILT_RETURN_IF_ERROR(check_positions(saved));
  const SavedPlaces places(header_, saved, layouts);
  if (places.end > image_.size()) return damaged("a layer of it does not fit");
  end = places.end;
  KVTILT_RETURN_IF_ERROR(check_recipes(index, places, layouts));
  return check_pages(saved, places);
}

}  // namespace kvtilt
