// SPDX-License-Identifier: MIT
// Members of KVCache that write sequences to bytes and read them back; included by kv_cache.hpp.

namespace kvtilt {

/// Writes a sequence to `image`, or nothing if that is empty; returns the bytes that it takes.
inline std::size_t KVCache::write_saved(const Sequence& sequence, std::int64_t length,
                                        std::span<std::byte> image) const {
  SavedWriter writer(image, layers(), length, token_placement(options_, {}), options_.fingerprint);
  std::uint64_t sum = 0;  // of all blocks, each added right after its copy, while it is in cache
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    const LayerStore& store = stores_[layer];
    if (store.shape.kv_heads == 0) {
      writer.skip_layer();
      continue;
    }
    const SequenceLayer& own = sequence.layer(layer);
    const Buffer<PageEntry>& entries = own.entries();
    const EntryRange sealed = own.sealed_range();
    SavedLayer saved;
    saved.pages = static_cast<std::int32_t>(sealed.size());
    saved.tail_start = own.tail_start();
    saved.first_kept = own.first_kept();
    const SavedPlaces places =
        writer.add_layer(store.shape, store.layouts, saved, [&](std::int32_t i) {
          const PageEntry& page = entries[sealed.first + static_cast<std::size_t>(i)];
          return SavedPage{page.first_position, page.tokens};
        });
    if (image.empty()) continue;
    const auto copy = [&](PageKind kind, std::int64_t index, const PageEntry* from) {
      const std::uint64_t at = places.block(kind, index);
      const std::size_t bytes = store.layout(kind).bytes;
      if (from == nullptr)  // the sinks of an empty sequence
        std::memset(image.data() + at, 0, bytes);
      else
        std::memcpy(image.data() + at, from->data, bytes);
      if (from != nullptr && kind != PageKind::Sealed)
        clear_unused_slots(store.layout(kind), from->tokens, image.data() + at);
      sum += saved_sum(image, at, at + bytes);
    };
    copy(PageKind::Sinks, 0, sealed.first > 0 ? &entries[0] : nullptr);
    for (std::size_t i = sealed.first; i < entries.size(); ++i)
      copy(entries[i].kind,
           static_cast<std::int64_t>(i - (i < sealed.last ? sealed.first : sealed.last)),
           &entries[i]);
  }
  if (!image.empty()) writer.finish(sum);
  return writer.bytes();
}

inline Result<std::size_t> KVCache::saved_bytes(SequenceId id) const {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  Result<std::int64_t> length = common_length(**found, "save");
  if (!length) return std::move(length).take_status();
  return write_saved(**found, *length, {});
}

inline Status KVCache::save(SequenceId id, std::span<std::byte> image) const {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  Result<std::int64_t> length = common_length(**found, "save");
  if (!length) return std::move(length).take_status();
  const std::size_t bytes = write_saved(**found, *length, {});
  if (image.size() != bytes)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequence %u takes %zu bytes to save; the image has %zu", id.slot, bytes,
                         image.size());
  write_saved(**found, *length, image);
  return {};
}

inline Result<SequenceId> KVCache::load(std::span<const std::byte> image, std::int64_t tokens) {
  Result<SavedReader> saved = SavedReader::open(image);
  if (!saved) return std::move(saved).take_status();
  KVTILT_RETURN_IF_ERROR(saved->verify_checksum());
  KVTILT_RETURN_IF_ERROR(
      saved->check_tables(stores_, token_placement(options_, {}), options_.fingerprint));
  KVTILT_RETURN_IF_ERROR(saved->check_values(stores_));
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens));
  tokens = std::max(tokens, saved->length());

  // Calls act(layer, own, places, page) for each layer that keeps a cache; page(i): i-th SavedPage.
  const auto for_each_layer = [&](Sequence& sequence, auto act) {
    for (std::size_t layer = 0; layer < stores_.size(); ++layer)
      if (stores_[layer].shape.kv_heads > 0) {
        const SavedPlaces places = saved->places(layer, stores_[layer].layouts);
        const auto page = [&](std::size_t i) {
          return saved->page(places, static_cast<std::int64_t>(i));
        };
        act(layer, sequence.layer(layer), places, page);
      }
  };
  Sequence* loaded = nullptr;
  SequenceId id;
  {
    const std::lock_guard<std::mutex> lock(*mutex_);
    Result<std::unique_ptr<Sequence>> made = new_sequence();
    if (!made) return std::move(made).take_status();
    loaded = made->get();
    std::fill(needs_.begin(), needs_.end(), BlockCounts{});
    for_each_layer(*loaded,
                   [&](std::size_t layer, SequenceLayer& own, const SavedPlaces&, auto page) {
                     needs_[layer] = own.load(saved->layer(layer), saved->length(), tokens, page);
                   });
    if (Status given = provide(*loaded, tokens); !given.ok()) {
      release_blocks(*loaded);
      return Result<SequenceId>(std::move(given));
    }
    for_each_layer(*loaded, [&](std::size_t layer, SequenceLayer& own, const SavedPlaces&,
                                auto page) { own.place_loaded(saved->layer(layer), page); });
    id = adopt(*std::move(made));
  }
  // No other thread has the id yet: the bytes are copied without holding the lock.
  for_each_layer(
      *loaded, [&](std::size_t layer, SequenceLayer& own, const SavedPlaces& places, auto) {
        std::int64_t next[page_kinds] = {};
        for (std::size_t i = 0; i < own.entries().size(); ++i) {
          const PageEntry& entry = own.entries()[i];
          std::memcpy(entry.data,
                      saved->block(places, entry.kind, next[static_cast<int>(entry.kind)]++),
                      stores_[layer].layout(entry.kind).bytes);
        }
      });
  return id;
}

}  // namespace kvtilt
