// SPDX-License-Identifier: MIT
// Members of cuda::KVCache that write sequences to bytes and read them back; included by kv_cache.cuh.

namespace kvtilt::cuda {

/// Device address of bytes that the host reads and writes, too; nothing else will do.
inline Result<std::byte*> KVCache::device_address(std::span<const std::byte> image) {
  const auto address = [](const std::byte* at) -> std::byte* {
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, at) != cudaSuccess) {
      (void)cudaGetLastError();  // it is reported: the engine's next question is not for it
      return nullptr;
    }
    const bool both =
        attributes.type == cudaMemoryTypeHost || attributes.type == cudaMemoryTypeManaged;
    return both ? static_cast<std::byte*>(attributes.devicePointer) : nullptr;
  };
  constexpr std::size_t alignment = 16;
  std::byte* first = image.empty() ? nullptr : address(image.data());
  if (first == nullptr || address(&image.back()) != first + (image.size() - 1) ||
      reinterpret_cast<std::uintptr_t>(first) % alignment != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "the image, %zu bytes at %p, must be pinned or managed memory at a "
                         "multiple of %zu, which host and device both reach: cudaMallocHost, "
                         "cudaHostRegister or cudaMallocManaged",
                         image.size(), static_cast<const void*>(image.data()), alignment);
  return first;
}

/// Writes all but blocks and checksum, and calls blocks(layer, places) for each layer that keeps a
/// cache. Without an image nothing is written.
template <class Blocks>
SavedWriter KVCache::write_tables(SequenceId id, std::int64_t length, std::span<std::byte> image,
                                  Blocks blocks) const {
  SavedWriter writer(image, layers(), length, token_placement(options_, {}));
  for (int layer = 0; layer < layers(); ++layer) {
    const detail::DeviceLayer& of = layout_.layers[static_cast<std::size_t>(layer)];
    if (of.shape.kv_heads == 0) {
      writer.skip_layer();
      continue;
    }
    const SequenceState& state = book_.state(id.slot, layer);
    const PageSlot* table = book_.table(id.slot, layer).data() + state.first_page;
    SavedLayer saved;
    saved.pages = state.page_end - state.first_page;
    saved.tail_start = state.tail_start;
    saved.first_kept = state.first_kept;
    blocks(layer, writer.add_layer(of.shape, of.layouts, saved, [&](std::int32_t i) {
      return SavedPage{table[i].first_position, table[i].tokens};
    }));
  }
  return writer;
}

/// Queues what `launch` does, and waits for the sum of the blocks that it moves.
template <class Launch>
Result<std::uint64_t> KVCache::summed(Launch launch, cudaStream_t stream) const {
  std::uint64_t* own = device_sum();
  KVTILT_RETURN_IF_ERROR(
      to_status(cudaMemsetAsync(own, 0, sizeof *own, stream), "moving a sequence"));
  Status launched = launch();
  std::uint64_t sum = 0;
  Status read = to_status(cudaMemcpyAsync(&sum, own, sizeof sum, cudaMemcpyDeviceToHost, stream),
                          "moving a sequence");
  // Whatever was queued may still use the caller's memory.
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "moving a sequence"));
  KVTILT_RETURN_IF_ERROR(std::move(launched));
  KVTILT_RETURN_IF_ERROR(std::move(read));
  return sum;
}

inline Result<std::size_t> KVCache::saved_bytes(SequenceId id) const {
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  return write_tables(id, *length, {}, [](int, const SavedPlaces&) {}).bytes();
}

inline Status KVCache::save(SequenceId id, std::span<std::byte> image, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "save"));
  KVTILT_RETURN_IF_ERROR(refresh(id, stream));
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  std::vector<std::pair<std::size_t, SavedPlaces>> layers;
  const std::size_t bytes =
      write_tables(id, *length, {}, [&](int layer, const SavedPlaces& places) {
        layers.emplace_back(static_cast<std::size_t>(layer), places);
      }).bytes();
  if (image.size() != bytes)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequence %u takes %zu bytes to save; the image has %zu", id.slot, bytes,
                         image.size());
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  const auto launch = [&]() -> Status {
    for (const auto& [layer, places] : layers)
      KVTILT_RETURN_IF_ERROR(launch_save_layer(
          {storages_[layer], static_cast<int>(id.slot), *device, places, device_sum()}, stream));
    return {};
  };
  Result<std::uint64_t> sum = summed(launch, stream);
  if (!sum) return std::move(sum).take_status();
  // The host writes only now: not all memory may be written from both sides at once.
  write_tables(id, *length, image, [](int, const SavedPlaces&) {}).finish(*sum);
  return {};
}

inline Result<SequenceId> KVCache::load(std::span<const std::byte> image, std::int64_t tokens,
                                        cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "load"));
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  Result<SavedReader> saved = SavedReader::open(image);
  if (!saved) return std::move(saved).take_status();
  KVTILT_RETURN_IF_ERROR(saved->check_numbers(layout_.layers, token_placement(options_, {})));
  given_.clear();
  Result<SequenceId> id = book_.load(*saved, tokens, given_);
  if (!id) return id;
  const int slot = static_cast<int>(id->slot);
  const auto launch = [&]() -> Status {
    KVTILT_RETURN_IF_ERROR(launch_reset(device_layers(), slot, stream));
    KVTILT_RETURN_IF_ERROR(launch_give_pages(device_layers(), slot, given_, stream));
    for (std::size_t layer = 0; layer < storages_.size(); ++layer) {
      if (storages_[layer].kv_heads == 0) continue;
      const SavedPlaces places = saved->places(layer, layout_.layers[layer].layouts);
      KVTILT_RETURN_IF_ERROR(launch_load_tables(
          storages_[layer], slot, saved->layer(layer),
          reinterpret_cast<const SavedPage*>(*device + places.pages), saved->length(), stream));
      KVTILT_RETURN_IF_ERROR(
          launch_load_layer({storages_[layer], slot, *device, places, device_sum()}, stream));
    }
    return {};
  };
  const auto load = [&]() -> Status {
    Result<std::uint64_t> sum = summed(launch, stream);
    if (!sum) return std::move(sum).take_status();
    return saved->check_sum(*sum, layout_.layers);
  };
  Status loaded = load();
  if (loaded.ok()) return id;
  static_cast<void>(launch_reset(device_layers(), slot, stream));
  static_cast<void>(book_.close(*id));  // nobody knows its slot
  return static_cast<Status&&>(loaded);
}

}  // namespace kvtilt::cuda
