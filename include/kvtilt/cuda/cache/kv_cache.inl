// SPDX-License-Identifier: MIT
// Members of cuda::KVCache that manage sequences and report memory; included by kv_cache.cuh.

namespace kvtilt::cuda {

inline KVCache::KVCache(const CacheOptions& options, detail::DeviceLayout layout,
                        DeviceMemory memory)
    : options_(options),
      layout_(std::move(layout)),
      memory_(std::move(memory)),
      book_(layout_.layers, options) {
  for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer)
    views_.push_back(detail::make_view(layout_, layer, memory_.data()));
}

inline Result<KVCache> KVCache::create(const CacheShape& shape, const Plan& plan,
                                       const CacheOptions& options, cudaStream_t stream) {
  Result<detail::DeviceLayout> layout = detail::make_device_layout(shape, plan, options);
  if (!layout) return std::move(layout).take_status();
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "create"));
  Result<DeviceMemory> memory =
      DeviceMemory::take(layout->plan.device_bytes(), options.device_memory);
  if (!memory) return std::move(memory).take_status();
  KVCache cache(options, *std::move(layout), *std::move(memory));
  KVTILT_RETURN_IF_ERROR(cache.upload(stream));
  return Result<KVCache>(std::move(cache));
}

/// Uploads layouts and empty states; the rest becomes zeros, as padding of pages is never written.
inline Status KVCache::upload(cudaStream_t stream) {
  const auto copy = [&](std::size_t offset, const void* from, std::size_t bytes) {
    return to_status(
        cudaMemcpyAsync(memory_.data() + offset, from, bytes, cudaMemcpyHostToDevice, stream),
        "creating a cache");
  };
  KVTILT_RETURN_IF_ERROR(to_status(
      cudaMemsetAsync(memory_.data(), 0, layout_.plan.device_bytes(), stream), "creating a cache"));
  KVTILT_RETURN_IF_ERROR(copy(layout_.views, views_.data(), views_.size() * sizeof(LayerView)));
  std::vector<std::int32_t> slots;
  for (std::int32_t slot = 0; slot < options_.max_sequences; ++slot) slots.push_back(slot);
  KVTILT_RETURN_IF_ERROR(copy(layout_.slots, slots.data(), slots.size() * sizeof(slots[0])));
  for (const detail::DeviceLayer& layer : layout_.layers) {
    if (layer.shape.kv_heads == 0) continue;
    for (int kind = 0; kind < page_kinds; ++kind) {
      const std::vector<HeadLayout>& heads = layer.layout(static_cast<PageKind>(kind)).heads;
      KVTILT_RETURN_IF_ERROR(
          copy(layer.heads[kind], heads.data(), heads.size() * sizeof(HeadLayout)));
    }
    const std::vector<HeadSlices> slices = detail::make_slices(layer.layout(PageKind::Sealed));
    KVTILT_RETURN_IF_ERROR(copy(layer.slices, slices.data(), slices.size() * sizeof(HeadSlices)));
    const std::vector<SequenceState> states(static_cast<std::size_t>(options_.max_sequences),
                                            empty_state(layer.placement, 0));
    KVTILT_RETURN_IF_ERROR(
        copy(layer.states, states.data(), states.size() * sizeof(SequenceState)));
    // Vectors must outlive their copies.
    KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "creating a cache"));
  }
  return to_status(cudaStreamSynchronize(stream), "creating a cache");
}

inline Result<SequenceId> KVCache::open(cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "open"));
  Result<SequenceId> id = book_.open();
  if (!id) return id;
  Status emptied = launch_reset(device_layers(), static_cast<int>(id->slot), stream);
  if (emptied.ok()) return id;
  static_cast<void>(book_.close(*id));
  return static_cast<Status&&>(emptied);
}

inline Status KVCache::reserve(SequenceId id, std::int64_t tokens, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "reserve"));
  given_.clear();
  KVTILT_RETURN_IF_ERROR(book_.reserve(id, tokens, given_));
  return launch_give_pages(device_layers(), static_cast<int>(id.slot), given_, stream);
}

inline Status KVCache::truncate(SequenceId id, std::int64_t length, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "truncate"));
  KVTILT_RETURN_IF_ERROR(book_.truncate(id, length));
  KVTILT_RETURN_IF_ERROR(
      launch_truncate(device_layers(), {{device_slots() + id.slot, 1}, nullptr, length}, stream));
  return drop_shared({&id, 1}, 0, layers(), stream);
}

inline Status KVCache::truncate(const SequenceBatch& batch, const std::int64_t* lengths,
                                std::span<const std::int64_t> known, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(book_.check_batch(batch.ids));
  if (lengths == nullptr)
    return Status::error(ErrorCode::InvalidArgument, "the lengths to truncate to are null");
  if (!known.empty()) {
    KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "truncate with lengths that the host knows"));
    KVTILT_RETURN_IF_ERROR(book_.truncate(batch.ids, known));
  }
  if (batch.device.count == 0) return {};
  KVTILT_RETURN_IF_ERROR(launch_truncate(device_layers(), {batch.device, lengths, 0}, stream));
  return known.empty() ? Status{} : drop_shared(batch.ids, 0, layers(), stream);
}

inline Status KVCache::remove(SequenceId id, std::int64_t from, std::int64_t to,
                              cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "remove"));
  KVTILT_RETURN_IF_ERROR(book_.remove(id, from, to));
  KVTILT_RETURN_IF_ERROR(
      launch_remove(device_layers(), static_cast<int>(id.slot), from, to, stream));
  return drop_shared({&id, 1}, 0, layers(), stream);
}

inline Result<SequenceId> KVCache::fork(SequenceId id, std::int64_t tokens, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "fork"));
  ForkRequest request{};
  given_.clear();
  Result<SequenceId> child = book_.fork(id, tokens, request, given_);
  if (!child) return child;
  const int slot = static_cast<int>(child->slot);
  int ring_blocks = 0;
  for (const LayerView& view : views_) ring_blocks = std::max(ring_blocks, view.ring_blocks);
  const auto launch = [&]() -> Status {
    KVTILT_RETURN_IF_ERROR(launch_reset(device_layers(), slot, stream));
    KVTILT_RETURN_IF_ERROR(launch_fork(device_layers(), request, ring_blocks, stream));
    return launch_give_pages(device_layers(), slot, given_, stream);
  };
  Status made = launch();
  if (made.ok()) return child;
  static_cast<void>(book_.close(*child));  // its slot was never handed out
  return static_cast<Status&&>(made);
}

inline Status KVCache::close(SequenceId id, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "close"));
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  // First, so that a replay that still names the slot has no page to write to.
  KVTILT_RETURN_IF_ERROR(launch_reset(device_layers(), static_cast<int>(id.slot), stream));
  return book_.close(id);
}

inline Status KVCache::drop_shared(std::span<const SequenceId> ids, int first, int last,
                                   cudaStream_t stream) {
  DroppedPages dropped;
  for (const SequenceId& id : ids) {
    dropped.sequence = static_cast<std::int32_t>(id.slot);
    dropped.count = 0;
    for (int layer = first; layer < last; ++layer)
      for (const PageSlot& entry : book_.dropped(id.slot, layer)) {
        dropped.pages[dropped.count++] = {layer, entry.page};
        if (dropped.count < dropped.capacity) continue;
        KVTILT_RETURN_IF_ERROR(launch_drop_shared(device_layers(), dropped, stream));
        dropped.count = 0;
      }
    if (dropped.count > 0)
      KVTILT_RETURN_IF_ERROR(launch_drop_shared(device_layers(), dropped, stream));
    for (int layer = first; layer < last; ++layer) book_.release_dropped(id.slot, layer);
  }
  return {};
}

inline void KVCache::add_usage(std::uint32_t slot, MemoryReport& report) const {
  for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const detail::DeviceLayer& of = layout_.layers[layer];
    if (of.shape.kv_heads == 0) continue;
    const SequenceState& state = book_.state(slot, static_cast<int>(layer));
    std::int64_t tokens = 0;
    std::size_t pages = 0;
    for (const PageSlot& entry :
         book_.table(slot, static_cast<int>(layer))
             .subspan(static_cast<std::size_t>(state.first_page),
                      static_cast<std::size_t>(state.page_end - state.first_page))) {
      tokens += entry.tokens;
      ++pages;
    }
    const std::int64_t sinks = std::min<std::int64_t>(state.length, of.placement.sink_tokens);
    const std::int64_t tail = std::max<std::int64_t>(0, state.length - state.tail_start);
    const std::size_t token_bytes = of.shape.elements_per_token() * sizeof(F16);
    report.page_bytes += pages * of.layout(PageKind::Sealed).bytes;
    report.table_bytes += pages * sizeof(PageSlot) + sizeof(SequenceState);
    report.sink_bytes += static_cast<std::size_t>(sinks) * token_bytes;
    report.tail_bytes += static_cast<std::size_t>(tail) * token_bytes;
    report.elements +=
        (tokens + sinks + tail) * static_cast<std::int64_t>(of.shape.elements_per_token());
  }
}

inline Result<MemoryReport> KVCache::memory(SequenceId id) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  MemoryReport report;
  add_usage(id.slot, report);
  return report;
}

inline MemoryReport KVCache::memory() const {
  MemoryReport report;
  report.reserved_bytes = layout_.plan.device_bytes();
  for (std::uint32_t slot = 0; slot < static_cast<std::uint32_t>(book_.max_sequences()); ++slot)
    if (book_.is_open(slot)) add_usage(slot, report);
  return report;
}

inline double KVCache::page_bits() const {
  double bits = 0;
  double elements = 0;
  for (const detail::DeviceLayer& layer : layout_.layers) {
    bits += 8.0 * static_cast<double>(layer.layout(PageKind::Sealed).bytes);
    elements += static_cast<double>(layer.shape.elements_per_token()) * options_.page_tokens;
  }
  return elements == 0 ? 0.0 : bits / elements;
}

}  // namespace kvtilt::cuda
