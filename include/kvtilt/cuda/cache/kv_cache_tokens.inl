// SPDX-License-Identifier: MIT
// Members of cuda::KVCache that append and unpack tokens and look at sequences; included by
// kv_cache.cuh.

namespace kvtilt::cuda {

inline Result<SequenceBatch> KVCache::batch(std::span<const SequenceId> ids,
                                            std::span<std::int32_t> memory, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "batch"));
  KVTILT_RETURN_IF_ERROR(book_.check_batch(ids));
  if (memory.size() < ids.size())
    return Status::error(ErrorCode::InvalidArgument,
                         "a batch of %zu sequences needs as many numbers of device memory; there "
                         "are %zu",
                         ids.size(), memory.size());
  std::vector<std::int32_t> slots;
  for (const SequenceId& id : ids) slots.push_back(static_cast<std::int32_t>(id.slot));
  KVTILT_RETURN_IF_ERROR(launch_write_slots(slots, memory, stream));
  return SequenceBatch{{ids.begin(), ids.end()}, {memory.data(), static_cast<int>(ids.size())}};
}

inline Result<SequenceBatch> KVCache::batch(SequenceId id) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  return SequenceBatch{{id}, {device_slots() + id.slot, 1}};
}

inline Result<SequenceBatch> KVCache::empty_batch(std::span<std::int32_t> memory,
                                                  cudaStream_t stream) {
  if (memory.size() > std::size_t{max_device_sequences})
    return Status::error(ErrorCode::InvalidArgument, "a batch of %zu places; there are at most %d",
                         memory.size(), max_device_sequences);
  Result<SequenceBatch> nobody = batch({}, memory, stream);
  if (nobody) nobody->device.count = static_cast<int>(memory.size());
  return nobody;
}

inline Status KVCache::append(std::span<const SequenceId> ids, const Batch& batch, int layer,
                              const TensorView& keys, const TensorView& values,
                              const std::int32_t* indptr, std::span<const std::int32_t> tokens,
                              cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(book_.check_batch(ids));
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  KVTILT_RETURN_IF_ERROR(kvtilt::detail::check_rows(shape(layer), keys, values, layer));
  if (batch.count == 0 || keys.tokens == 0) return {};
  const std::int64_t each = indptr == nullptr ? keys.tokens / batch.count : 0;
  constexpr std::int64_t most = std::int64_t{1} << 30;
  if (keys.tokens > most || (indptr == nullptr && each * batch.count != keys.tokens))
    return Status::error(ErrorCode::InvalidArgument,
                         "layer %d: %lld rows are not as many for each of %d sequences; give "
                         "indptr, and at most 2^30 rows",
                         layer, static_cast<long long>(keys.tokens), batch.count);
  if (indptr == nullptr) {
    counts_.assign(static_cast<std::size_t>(batch.count), static_cast<std::int32_t>(each));
    tokens = counts_;
  } else if (!tokens.empty()) {
    std::int64_t rows = 0;
    for (const std::int32_t count : tokens) rows += count;
    if (rows > keys.tokens)
      return Status::error(ErrorCode::InvalidArgument,
                           "layer %d: %lld tokens in all, but %lld rows", layer,
                           static_cast<long long>(rows), static_cast<long long>(keys.tokens));
  }
  Result<bool> capturing = is_capturing(stream);
  if (!capturing) return std::move(capturing).take_status();
  const bool told = !*capturing && !tokens.empty() && !ids.empty();
  if (told) KVTILT_RETURN_IF_ERROR(book_.check_append(ids, layer, tokens));
  const LayerView& of = views_[static_cast<std::size_t>(layer)];
  const AppendArguments arguments{of, batch, keys, values, {indptr, static_cast<int>(each)}};
  // Only a hint: what a captured launch is told need not hold when it is replayed.
  const std::int64_t each_expected = expected_tokens(keys.tokens, batch.count, tokens);
  KVTILT_RETURN_IF_ERROR(
      to_status(launch_pack(arguments, each_expected, stream), "appending tokens"));
  if (!told) return {};
  book_.note_appended(ids, layer, tokens);
  return drop_shared(ids, layer, layer + 1, stream);
}

inline Status KVCache::append(const SequenceBatch& batch, int layer, const TensorView& keys,
                              const TensorView& values, const std::int32_t* indptr,
                              std::span<const std::int32_t> tokens, cudaStream_t stream) {
  return append(batch.ids, batch.device, layer, keys, values, indptr, tokens, stream);
}

inline Status KVCache::append(const SequenceBatch& batch, int layer, const TensorView& keys,
                              const TensorView& values, cudaStream_t stream) {
  return append(batch.ids, batch.device, layer, keys, values, nullptr, {}, stream);
}

inline Status KVCache::append(SequenceId id, int layer, const TensorView& keys,
                              const TensorView& values, cudaStream_t stream) {
  // Checked here, as the slot is used before the batch is checked.
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  return append({&id, 1}, {device_slots() + id.slot, 1}, layer, keys, values, nullptr, {}, stream);
}

inline Status KVCache::unpack(SequenceId id, int layer, std::int64_t first,
                              const MutableTensorView& keys, const MutableTensorView& values,
                              cudaStream_t stream) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  Result<std::int64_t> wanted =
      kvtilt::detail::check_wanted_rows(shape(layer), keys, values, layer);
  if (!wanted) return std::move(wanted).take_status();
  const std::int64_t tokens = *wanted;
  constexpr std::int64_t most = std::int64_t{1} << 24;
  if (first < 0 || first > most_token_count || tokens > most)
    return Status::error(ErrorCode::InvalidArgument,
                         "layer %d: cannot unpack %lld tokens from position %lld on: at most %lld "
                         "in a call, from 0 to %lld",
                         layer, static_cast<long long>(tokens), static_cast<long long>(first),
                         static_cast<long long>(most), static_cast<long long>(most_token_count));
  if (tokens == 0) return {};
  return to_status(launch_unpack({views_[static_cast<std::size_t>(layer)],
                                  static_cast<int>(id.slot), first, tokens, keys, values},
                                 stream),
                   "unpacking tokens");
}

inline Result<LayerView> KVCache::view(int layer) const {
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  return views_[static_cast<std::size_t>(layer)];
}

inline Status KVCache::note_appended(const SequenceBatch& batch,
                                     std::span<const std::int32_t> tokens, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "note_appended"));
  KVTILT_RETURN_IF_ERROR(book_.check_batch(batch.ids));
  const auto cached = [&](int layer) {
    return views_[static_cast<std::size_t>(layer)].kv_heads > 0;
  };
  for (int layer = 0; layer < layers(); ++layer)
    if (cached(layer)) KVTILT_RETURN_IF_ERROR(book_.check_append(batch.ids, layer, tokens));
  for (int layer = 0; layer < layers(); ++layer)
    if (cached(layer)) book_.note_appended(batch.ids, layer, tokens);
  return drop_shared(batch.ids, 0, layers(), stream);
}

inline Status KVCache::note_truncated(const SequenceBatch& batch,
                                      std::span<const std::int64_t> lengths, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "note_truncated"));
  KVTILT_RETURN_IF_ERROR(book_.check_batch(batch.ids));
  KVTILT_RETURN_IF_ERROR(book_.truncate(batch.ids, lengths));
  return drop_shared(batch.ids, 0, layers(), stream);
}

inline Result<std::int64_t> KVCache::tokens_before_seal(SequenceId id, int layer) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  const SequenceState& state = book_.state(id.slot, layer);
  return views_[static_cast<std::size_t>(layer)].placement().tokens_before_seal(state.tail_start,
                                                                                state.length);
}

inline Result<std::int64_t> KVCache::free_pages(int layer) const {
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  return book_.pages(layer).free_pages();
}

inline Result<std::int64_t> KVCache::reserved_tokens(SequenceId id) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  return book_.reserved_tokens(id.slot);
}

inline Result<std::int64_t> KVCache::length(SequenceId id, int layer) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  return book_.state(id.slot, layer).length;
}

inline Result<std::int64_t> KVCache::length(SequenceId id) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  std::int64_t shortest = -1;
  for (int layer = 0; layer < layers(); ++layer) {
    if (views_[static_cast<std::size_t>(layer)].kv_heads == 0) continue;
    const std::int64_t length = book_.state(id.slot, layer).length;
    shortest = shortest < 0 ? length : std::min(shortest, length);
  }
  return std::max<std::int64_t>(shortest, 0);
}

inline Result<std::int64_t> KVCache::length(SequenceId id, int layer, cudaStream_t stream) const {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  KVTILT_RETURN_IF_ERROR(book_.check_layer(layer));
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "length"));
  SequenceState state{};
  const LayerView& view = views_[static_cast<std::size_t>(layer)];
  KVTILT_RETURN_IF_ERROR(to_status(
      cudaMemcpyAsync(&state, view.states + id.slot, sizeof state, cudaMemcpyDeviceToHost, stream),
      "reading a length"));
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "reading a length"));
  return state.length;
}

inline Status KVCache::refresh(SequenceId id, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(book_.check(id));
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "refresh"));
  const auto read = [&](void* to, const void* from, std::size_t bytes) {
    return to_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream),
                     "reading a sequence");
  };
  std::vector<SequenceState> states(views_.size());
  std::vector<std::vector<PageSlot>> tables(views_.size());
  for (std::size_t layer = 0; layer < views_.size(); ++layer)
    if (views_[layer].kv_heads > 0)
      KVTILT_RETURN_IF_ERROR(
          read(&states[layer], views_[layer].states + id.slot, sizeof(SequenceState)));
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "reading a sequence"));
  for (std::size_t layer = 0; layer < views_.size(); ++layer) {
    if (views_[layer].kv_heads == 0) continue;
    tables[layer].resize(static_cast<std::size_t>(states[layer].page_capacity));
    KVTILT_RETURN_IF_ERROR(read(tables[layer].data(),
                                views_[layer].table(static_cast<int>(id.slot)),
                                tables[layer].size() * sizeof(PageSlot)));
  }
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "reading a sequence"));
  for (std::size_t layer = 0; layer < views_.size(); ++layer)
    if (views_[layer].kv_heads > 0)
      KVTILT_RETURN_IF_ERROR(
          book_.adopt(id, static_cast<int>(layer), states[layer], tables[layer]));
  return {};
}

/// Kernels of other streams may record errors meanwhile. While there is a fault they only count, and
/// what they count before the count is read belongs to this error; one that claims the record after
/// it is freed stays for the next poll. Hence the order: fault, the rest, free the record, count.
inline Status KVCache::poll(cudaStream_t stream, DeviceRecord* record) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "poll"));
  DeviceRecords* all = reinterpret_cast<DeviceRecords*>(memory_.data() + layout_.record);
  const auto read = [&](void* to, const void* from, std::size_t bytes) {
    KVTILT_RETURN_IF_ERROR(
        to_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "poll"));
    return to_status(cudaStreamSynchronize(stream), "poll");
  };
  const auto clear = [&](auto* word) {
    return to_status(cudaMemsetAsync(word, 0, sizeof *word, stream), "poll");
  };
  if (record != nullptr) *record = {};
  DeviceRecords faults{};  // only the faults are sure to be complete
  KVTILT_RETURN_IF_ERROR(read(&faults, all, sizeof faults));
  if (faults.first().fault == DeviceFault::None) return {};
  DeviceRecord* own = faults.refused.fault != DeviceFault::None ? &all->refused : &all->repaired;
  DeviceRecord found{};
  KVTILT_RETURN_IF_ERROR(read(&found, own, sizeof found));
  KVTILT_RETURN_IF_ERROR(clear(&own->fault));
  KVTILT_RETURN_IF_ERROR(clear(&own->claimed));
  KVTILT_RETURN_IF_ERROR(read(&found.count, &own->count, sizeof found.count));
  KVTILT_RETURN_IF_ERROR(clear(&own->count));
  // At least this error: the last poll may have taken its count.
  found.count = std::max<std::uint32_t>(found.count, 1);
  if (record != nullptr) *record = found;
  const bool known = found.layer >= 0 && found.layer < layers();
  return to_status(found, known ? views_[static_cast<std::size_t>(found.layer)].key_dim : 0);
}

}  // namespace kvtilt::cuda
