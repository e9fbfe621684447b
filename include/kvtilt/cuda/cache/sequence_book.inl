// SPDX-License-Identifier: MIT
// Members of SequenceBook; included by sequence_book.hpp.

namespace kvtilt::cuda {

inline SequenceBook::SequenceBook(const std::vector<detail::DeviceLayer>& layers,
                                  const CacheOptions& options)
    : layers_(layers),
      sequences_(static_cast<std::size_t>(options.max_sequences)),
      longest_(options.longest()) {
  for (const detail::DeviceLayer& layer : layers_) pages_.emplace_back(layer.pages);
  for (Sequence& sequence : sequences_) sequence.layers.resize(layers_.size());
}

inline Status SequenceBook::check(SequenceId id) const {
  if (id.slot < sequences_.size() && id.generation != 0 && sequences_[id.slot].is_open &&
      sequences_[id.slot].generation == id.generation)
    return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "sequence %u (generation %u) is not open in this cache", id.slot,
                       id.generation);
}

inline Status SequenceBook::check_layer(int layer) const {
  if (layer < 0 || layer >= layers())
    return Status::error(ErrorCode::InvalidArgument, "layer %d does not exist: the cache has %d",
                         layer, layers());
  if (!cached(static_cast<std::size_t>(layer)))
    return Status::error(ErrorCode::InvalidArgument, "layer %d keeps no cache (kv_heads is 0)",
                         layer);
  return {};
}

/// Tokens that no layer holds any more, as pages were removed or left the windows of all layers. Short
/// pages count as whole ones, which take as much of a table.
inline std::int64_t SequenceBook::dropped_tokens(std::span<const Layer> layers) const {
  std::optional<std::int64_t> least;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    const SequenceState& state = layers[layer].state;
    const TokenPlacement& placement = layers_[layer].placement;
    const std::int64_t pages = state.page_end - state.first_page;
    const std::int64_t dropped =
        state.tail_start - placement.sink_tokens - pages * placement.page_tokens;
    if (!least || dropped < *least) least = dropped;
  }
  return std::max<std::int64_t>(0, least.value_or(0));
}

inline Status SequenceBook::check_tokens(std::int64_t tokens, std::span<const Layer> layers) const {
  if (tokens >= 0 && tokens <= longest_) return {};
  const std::int64_t dropped = dropped_tokens(layers);
  if (tokens >= 0 && tokens <= longest_ + dropped) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "cannot reserve %lld tokens, only 0 to max_sequence_tokens, which is %lld, "
                       "beside %lld that were dropped",
                       static_cast<long long>(tokens), static_cast<long long>(longest_),
                       static_cast<long long>(dropped));
}

inline Result<std::uint32_t> SequenceBook::free_slot() const {
  for (std::size_t slot = 0; slot < sequences_.size(); ++slot)
    if (!sequences_[slot].is_open) return static_cast<std::uint32_t>(slot);
  return Status::error(ErrorCode::OutOfCapacity, "all %zu sequences of this cache are open",
                       sequences_.size());
}

inline SequenceId SequenceBook::occupy(std::uint32_t slot) {
  Sequence& sequence = sequences_[slot];
  sequence.is_open = true;
  if (++sequence.generation == 0) sequence.generation = 1;  // 0 means no sequence
  return {slot, sequence.generation};
}

inline Result<SequenceId> SequenceBook::open() {
  Result<std::uint32_t> slot = free_slot();
  if (!slot) return std::move(slot).take_status();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer)
    sequences_[*slot].layers[layer] = {empty_state(layers_[layer].placement, 0), {}};
  return occupy(*slot);
}

/// Pages that a sequence lacks to grow to `tokens` tokens.
inline std::int64_t SequenceBook::missing_pages(std::size_t layer, const SequenceState& state,
                                                const PageSlot* table, std::int64_t tokens) const {
  const detail::DeviceLayer& of = layers_[layer];
  const std::int64_t spare = state.page_capacity - state.page_end;
  const std::int64_t seals = of.placement.seals(state.tail_start, tokens);
  if (of.placement.window == 0) return std::max<std::int64_t>(0, seals - spare);
  // Once the window has passed it, a page of its own is reused, a shared one is not. Pages that a
  // truncation left short make a window span more pages.
  const std::int32_t first_own = std::max(state.shared_end, state.first_page);
  const std::int64_t own = std::max(0, state.page_end - first_own);
  std::int64_t most = of.window_pages();
  for (std::int32_t entry = first_own; entry < state.page_end; ++entry)
    if (table[entry].tokens < of.placement.page_tokens) ++most;
  return std::max<std::int64_t>(0, std::min(own + seals, std::max(most, own)) - own - spare);
}

inline std::int64_t SequenceBook::reserved_tokens(std::uint32_t slot) const {
  const std::int64_t most = longest_ + dropped_tokens(sequences_[slot].layers);
  std::int64_t least = most;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const Layer& own = sequences_[slot].layers[layer];
    if (!cached(layer) || missing_pages(layer, own.state, own.table.data(), most) == 0) continue;
    const TokenPlacement& placement = layers_[layer].placement;
    const std::int64_t spare = own.state.page_capacity - own.state.page_end;
    const std::int64_t next =
        own.state.length + placement.tokens_before_seal(own.state.tail_start, own.state.length);
    least = std::min(least, next + spare * placement.page_tokens);
  }
  return least;
}

inline Status SequenceBook::check_room(std::size_t layer, std::int64_t missing, std::int32_t held,
                                       const Layer& own, std::int64_t tokens) const {
  if (missing + held > layers_[layer].table_stride) {
    const auto is_short = [&](const PageSlot& entry) {
      return entry.tokens < layers_[layer].placement.page_tokens;
    };
    const auto cut = std::count_if(own.table.begin() + own.state.first_page,
                                   own.table.begin() + own.state.page_end, is_short);
    return Status::error(ErrorCode::OutOfCapacity,
                         "layer %zu: a table of %lld pages has no room for %lld more: it holds %d, "
                         "%lld of them left short by truncations; make max_sequence_tokens larger "
                         "than %lld",
                         layer, static_cast<long long>(layers_[layer].table_stride),
                         static_cast<long long>(missing), held, static_cast<long long>(cut),
                         static_cast<long long>(longest_));
  }
  const std::int64_t pages = pages_[layer].pages();
  if (missing + held > pages)
    return Status::error(ErrorCode::OutOfCapacity,
                         "layer %zu: %lld tokens need %lld pages; it has %lld for all sequences: "
                         "make token_capacity larger",
                         layer, static_cast<long long>(tokens),
                         static_cast<long long>(missing + held), static_cast<long long>(pages));
  if (missing <= pages_[layer].free_pages()) return {};
  return Status::error(ErrorCode::OutOfMemory,
                       "layer %zu: %lld tokens need %lld pages more; %lld of its %lld are free",
                       layer, static_cast<long long>(tokens), static_cast<long long>(missing),
                       static_cast<long long>(pages_[layer].free_pages()),
                       static_cast<long long>(pages));
}

inline void SequenceBook::give(std::size_t layer, Layer& own, std::int64_t count,
                               std::vector<PageRun>& given) {
  const std::int32_t number = static_cast<std::int32_t>(layer);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t page = pages_[layer].take();
    own.table.insert(own.table.begin() + own.state.page_capacity, {0, page, 0});
    ++own.state.page_capacity;
    if (!given.empty() && given.back().layer == number &&
        given.back().first + given.back().count == page)
      ++given.back().count;
    else
      given.push_back({number, page, 1});
  }
}

inline void SequenceBook::release_dropped(std::uint32_t slot, int layer) {
  Layer& own = sequences_[slot].layers[static_cast<std::size_t>(layer)];
  const std::span<const PageSlot> entries = dropped(slot, layer);
  for (std::size_t i = entries.size(); i-- > 0;)  // backwards, so that take() finds them as one run
    pages_[static_cast<std::size_t>(layer)].release(entries[i].page);
  own.table.resize(static_cast<std::size_t>(own.state.page_capacity));
}

inline Status SequenceBook::reserve(SequenceId id, std::int64_t tokens,
                                    std::vector<PageRun>& given) {
  KVTILT_RETURN_IF_ERROR(check(id));
  Sequence& sequence = sequences_[id.slot];
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens, sequence.layers));
  const auto missing = [&](std::size_t layer) {
    const Layer& own = sequence.layers[layer];
    return cached(layer) ? missing_pages(layer, own.state, own.table.data(), tokens) : 0;
  };
  for (std::size_t layer = 0; layer < layers_.size(); ++layer)
    if (cached(layer))
      KVTILT_RETURN_IF_ERROR(check_room(layer, missing(layer),
                                        sequence.layers[layer].state.page_capacity,
                                        sequence.layers[layer], tokens));
  for (std::size_t layer = 0; layer < layers_.size(); ++layer)
    give(layer, sequence.layers[layer], missing(layer), given);
  return {};
}

inline Status SequenceBook::check_truncate(SequenceId id, std::int64_t length) const {
  KVTILT_RETURN_IF_ERROR(check(id));
  if (length < 0)
    return Status::error(ErrorCode::InvalidArgument, "cannot truncate to %lld tokens",
                         static_cast<long long>(length));
  const Sequence& sequence = sequences_[id.slot];
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const SequenceState& state = sequence.layers[layer].state;
    if (cached(layer) &&
        layers_[layer].placement.needs_freed_tokens(state.first_kept, state.length, length))
      return Status::error(ErrorCode::InvalidArgument,
                           "cannot truncate to %lld tokens: the window of layer %zu has freed "
                           "positions up to %lld that the next token would see",
                           static_cast<long long>(length), layer,
                           static_cast<long long>(state.first_kept) - 1);
  }
  return {};
}

inline Status SequenceBook::truncate(SequenceId id, std::int64_t length) {
  return truncate({&id, 1}, {&length, 1});
}

inline Status SequenceBook::truncate(std::span<const SequenceId> ids,
                                     std::span<const std::int64_t> lengths) {
  if (ids.size() != lengths.size())
    return Status::error(ErrorCode::InvalidArgument, "%zu sequences, but %zu lengths", ids.size(),
                         lengths.size());
  for (std::size_t i = 0; i < ids.size(); ++i)
    KVTILT_RETURN_IF_ERROR(check_truncate(ids[i], lengths[i]));
  for (std::size_t i = 0; i < ids.size(); ++i) cut(ids[i], lengths[i]);
  return {};
}

inline void SequenceBook::cut(SequenceId id, std::int64_t length) {
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    Layer& own = sequences_[id.slot].layers[layer];
    cuda::truncate(SingleThread{}, layers_[layer].placement, own.state, own.table.data(), length);
  }
}

inline Status SequenceBook::remove(SequenceId id, std::int64_t from, std::int64_t to) {
  KVTILT_RETURN_IF_ERROR(check(id));
  Sequence& sequence = sequences_[id.slot];
  std::int32_t first = 0;
  std::int32_t last = 0;
  const auto find = [&](std::size_t layer) {
    const Layer& own = sequence.layers[layer];
    return find_whole_pages(layers_[layer].placement, own.state, own.table.data(), from, to, first,
                            last);
  };
  for (std::size_t layer = 0; layer < layers_.size(); ++layer)
    if (cached(layer) && !find(layer)) {
      const SequenceState& state = sequence.layers[layer].state;
      const PageSlot* table = sequence.layers[layer].table.data() + state.first_page;
      return refuse_removal(layer, from, to,
                            nearest_pages(
                                static_cast<std::size_t>(state.page_end - state.first_page),
                                [&](std::size_t i) {
                                  return PageRange{table[i].first_position, end_of(table[i])};
                                },
                                from, to));
    }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!cached(layer)) continue;
    (void)find(layer);
    Layer& own = sequence.layers[layer];
    drop_pages(SingleThread{}, own.state, own.table.data(), first, last);
  }
  return {};
}

inline Status SequenceBook::close(SequenceId id) {
  KVTILT_RETURN_IF_ERROR(check(id));
  Sequence& sequence = sequences_[id.slot];
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    sequence.layers[layer].state =
        empty_state(layers_[layer].placement, 0);  // all pages are dropped, and released next
    release_dropped(id.slot, static_cast<int>(layer));
  }
  sequence.is_open = false;
  return {};
}

inline Status SequenceBook::check_batch(std::span<const SequenceId> ids) {
  ++batches_;
  for (const SequenceId& id : ids) {
    KVTILT_RETURN_IF_ERROR(check(id));
    if (sequences_[id.slot].named == batches_)
      return Status::error(ErrorCode::InvalidArgument, "sequence %u is twice in a batch", id.slot);
    sequences_[id.slot].named = batches_;
  }
  return {};
}

inline Status SequenceBook::check_append(std::span<const SequenceId> ids, int layer,
                                         std::span<const std::int32_t> counts) const {
  KVTILT_RETURN_IF_ERROR(check_layer(layer));
  if (ids.size() != counts.size())
    return Status::error(ErrorCode::InvalidArgument, "%zu sequences, but %zu counts of tokens",
                         ids.size(), counts.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (counts[i] < 0)
      return Status::error(ErrorCode::InvalidArgument, "cannot append %d tokens to sequence %u",
                           counts[i], ids[i].slot);
    const Layer& own = sequences_[ids[i].slot].layers[static_cast<std::size_t>(layer)];
    const AppendPlan plan = plan_append(layers_[static_cast<std::size_t>(layer)].placement,
                                        own.state, own.table.data(), counts[i]);
    if (plan.fits) continue;
    return Status::error(ErrorCode::OutOfCapacity,
                         "layer %d: sequence %u holds %lld tokens and lacks pages for %d more; "
                         "reserve again",
                         layer, ids[i].slot, static_cast<long long>(own.state.length), counts[i]);
  }
  return {};
}

inline void SequenceBook::note_appended(std::span<const SequenceId> ids, int layer,
                                        std::span<const std::int32_t> counts) {
  const TokenPlacement& placement = layers_[static_cast<std::size_t>(layer)].placement;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Layer& own = sequences_[ids[i].slot].layers[static_cast<std::size_t>(layer)];
    const AppendPlan plan = plan_append(placement, own.state, own.table.data(), counts[i]);
    finish_append(SingleThread{}, placement, plan, placement.ring_blocks(), own.state,
                  own.table.data());
  }
}

inline Status SequenceBook::adopt(SequenceId id, int layer, const SequenceState& state,
                                  std::span<const PageSlot> table) {
  KVTILT_RETURN_IF_ERROR(check(id));
  KVTILT_RETURN_IF_ERROR(check_layer(layer));
  const std::size_t index = static_cast<std::size_t>(layer);
  Layer& own = sequences_[id.slot].layers[index];
  const auto sorted_pages = [](std::span<const PageSlot> entries) {
    std::vector<std::int32_t> sorted;
    for (const PageSlot& entry : entries) sorted.push_back(entry.page);
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  };
  const std::vector<std::int32_t> before = sorted_pages(own.table);
  const std::vector<std::int32_t> now = sorted_pages(table);
  if (!std::includes(before.begin(), before.end(), now.begin(), now.end()))
    return Status::error(ErrorCode::Corrupt,
                         "layer %d: sequence %u has pages on the device that the host did not give "
                         "it",
                         layer, id.slot);
  std::vector<std::int32_t> dropped;
  std::set_difference(before.begin(), before.end(), now.begin(), now.end(),
                      std::back_inserter(dropped));
  for (std::size_t i = dropped.size(); i-- > 0;) pages_[index].release(dropped[i]);
  own.state = state;
  own.table.assign(table.begin(), table.end());
  return {};
}

}  // namespace kvtilt::cuda
