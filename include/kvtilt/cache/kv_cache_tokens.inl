// SPDX-License-Identifier: MIT
// Members of KVCache that put tokens in, take them out and look at them; included by kv_cache.hpp.

namespace kvtilt {

inline Status KVCache::check_append(const Sequence& sequence, int layer, const TensorView& keys,
                                    const TensorView& values) const {
  const LayerStore& store = stores_[static_cast<std::size_t>(layer)];
  const SequenceLayer& own = sequence.layer(static_cast<std::size_t>(layer));
  KVTILT_RETURN_IF_ERROR(detail::check_rows(store.shape, keys, values, layer));
  if (keys.tokens == 0) return {};
  if (keys.tokens > sequence.capacity - own.length())
    return Status::error(
        ErrorCode::OutOfCapacity,
        "layer %d holds %lld tokens of %lld reserved; %lld more do not fit: reserve first", layer,
        static_cast<long long>(own.length()), static_cast<long long>(sequence.capacity),
        static_cast<long long>(keys.tokens));
  const std::int64_t length = own.length() + keys.tokens;
  if (own.missing_for(length).sealed > 0)
    return Status::error(ErrorCode::OutOfCapacity,
                         "layer %d lacks a page for %lld tokens, because a truncation left a "
                         "sealed page partly filled or a fork keeps it; reserve again",
                         layer, static_cast<long long>(length));
  return store.check_values(*kernels_, keys, values, layer);
}

inline Status KVCache::append(SequenceId id, int layer, const TensorView& keys,
                              const TensorView& values) {
  Result<Sequence*> found = find(id, layer);
  if (!found) return std::move(found).take_status();
  KVTILT_RETURN_IF_ERROR(check_append(**found, layer, keys, values));
  const LayerStore& store = stores_[static_cast<std::size_t>(layer)];
  SequenceLayer& own = (*found)->layer(static_cast<std::size_t>(layer));
  const std::int64_t length = own.length() + keys.tokens;
  const auto seal_pages = [&] {
    while (own.must_seal(length)) store.fill_page(*kernels_, own.seal());
  };
  seal_pages();
  for (std::int64_t token = 0; token < keys.tokens;) {
    const SequenceLayer::Placed placed = own.place_tokens(keys.tokens - token);
    store.write_tokens(*kernels_, keys, values, token, placed.tokens, placed.kind, placed.block,
                       placed.slot);
    token += placed.tokens;
    seal_pages();
  }
  return {};
}

inline Status KVCache::truncate(SequenceId id, std::int64_t length) {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  if (length < 0)
    return Status::error(ErrorCode::InvalidArgument, "cannot truncate to %lld tokens",
                         static_cast<long long>(length));
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    if ((*found)->layer(layer).needs_freed_tokens(length))
      return Status::error(ErrorCode::InvalidArgument,
                           "cannot truncate to %lld tokens: the window of layer %zu has freed "
                           "positions up to %lld that the next token would see",
                           static_cast<long long>(length), layer,
                           static_cast<long long>((*found)->layer(layer).first_kept()) - 1);
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    (*found)->layer(layer).truncate(length);
  return {};
}

namespace detail {

/// kvtilt::nearest_pages() of a layer's sealed pages.
inline PageRange nearest_pages(const SequenceLayer& layer, std::int64_t from, std::int64_t to) {
  const Buffer<PageEntry>& entries = layer.entries();
  const EntryRange sealed = layer.sealed_range();
  return kvtilt::nearest_pages(
      sealed.size(),
      [&](std::size_t i) {
        const PageEntry& page = entries[sealed.first + i];
        return PageRange{page.first_position, page.first_position + page.tokens};
      },
      from, to);
}

}  // namespace detail

inline Status KVCache::remove(SequenceId id, std::int64_t from, std::int64_t to) {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  std::size_t first = 0;
  std::size_t last = 0;
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    if (stores_[layer].shape.kv_heads > 0 &&
        !(*found)->layer(layer).find_pages(from, to, first, last))
      return refuse_removal(layer, from, to,
                            detail::nearest_pages((*found)->layer(layer), from, to));
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    if (stores_[layer].shape.kv_heads > 0) {
      (void)(*found)->layer(layer).find_pages(from, to, first, last);
      (*found)->layer(layer).remove_pages(first, last);
    }
  return {};
}

inline Result<LayerView> KVCache::view(SequenceId id, int layer) const {
  Result<Sequence*> found = find(id, layer);
  if (!found) return std::move(found).take_status();
  const LayerStore& store = stores_[static_cast<std::size_t>(layer)];
  const SequenceLayer& own = (*found)->layer(static_cast<std::size_t>(layer));
  LayerView view = store.empty_view();
  view.pages = own.entries().data();
  view.page_count = static_cast<std::int32_t>(own.entries().size());
  view.sink_tokens = store.placement.sink_tokens;
  view.length = own.length();
  view.first_kept = own.first_kept();
  view.kernels = kernels_;
  return view;
}

inline Status KVCache::unpack(SequenceId id, int layer, std::int64_t first,
                              const MutableTensorView& keys,
                              const MutableTensorView& values) const {
  Result<LayerView> seen = view(id, layer);
  if (!seen) return std::move(seen).take_status();
  KVTILT_RETURN_IF_ERROR(detail::check_unpack(*seen, first, keys, values, layer));
  detail::unpack_checked(*seen, first, keys, values);
  return {};
}

inline Result<std::int64_t> KVCache::tokens_before_seal(SequenceId id, int layer) const {
  Result<Sequence*> found = find(id, layer);
  if (!found) return std::move(found).take_status();
  return (*found)->layer(static_cast<std::size_t>(layer)).tokens_before_seal();
}

inline Result<std::int64_t> KVCache::length(SequenceId id, int layer) const {
  Result<Sequence*> found = find(id, layer);
  if (!found) return std::move(found).take_status();
  return (*found)->layer(static_cast<std::size_t>(layer)).length();
}

inline Result<std::int64_t> KVCache::length(SequenceId id) const {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  std::int64_t shortest = -1;
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    if (stores_[layer].shape.kv_heads == 0) continue;
    const std::int64_t length = (*found)->layer(layer).length();
    shortest = shortest < 0 ? length : std::min(shortest, length);
  }
  return std::max<std::int64_t>(shortest, 0);
}

inline void KVCache::add_usage(const Sequence& sequence, MemoryReport& report) const {
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    const LayerStore& store = stores_[layer];
    const EntryCounts& counts = sequence.layer(layer).counts();
    for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail})
      store.add_usage(kind, counts.entries(kind), counts.tokens(kind), report);
  }
}

inline Result<MemoryReport> KVCache::memory(SequenceId id) const {
  const std::lock_guard<std::mutex> lock(*mutex_);
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  MemoryReport report;
  add_usage(**found, report);
  return report;
}

inline MemoryReport KVCache::memory() const {
  const std::lock_guard<std::mutex> lock(*mutex_);
  MemoryReport report;
  report.reserved_bytes = reserved_bytes();
  for (const Slot& slot : slots_)
    if (slot.sequence != nullptr) add_usage(*slot.sequence, report);
  return report;
}

inline double KVCache::page_bits() const {
  double bits = 0;
  double elements = 0;
  for (const LayerStore& store : stores_) {
    bits += 8.0 * static_cast<double>(store.layout(PageKind::Sealed).bytes);
    elements += static_cast<double>(store.shape.elements_per_token()) * options_.page_tokens;
  }
  return elements == 0 ? 0.0 : bits / elements;
}

}  // namespace kvtilt
