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

/// Calls blocks(layer, places) for each layer that keeps a cache. Returns the bytes that it takes;
/// without an image nothing is written, and with one all but the blocks.
template <class Blocks>
std::size_t KVCache::write_saved(SequenceId id, std::int64_t length, std::span<std::byte> image,
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
  if (!image.empty()) writer.finish();
  return writer.bytes();
}

inline Result<std::size_t> KVCache::saved_bytes(SequenceId id) const {
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  return write_saved(id, *length, {}, [](int, const SavedPlaces&) {});
}

inline Status KVCache::save(SequenceId id, std::span<std::byte> image, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "save"));
  KVTILT_RETURN_IF_ERROR(refresh(id, stream));
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  const std::size_t bytes = write_saved(id, *length, {}, [](int, const SavedPlaces&) {});
  if (image.size() != bytes)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequence %u takes %zu bytes to save; the image has %zu", id.slot, bytes,
                         image.size());
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  const auto launch = [&]() -> Status {
    std::vector<std::pair<std::size_t, SavedPlaces>> layers;
    write_saved(id, *length, {}, [&](int layer, const SavedPlaces& places) {
      layers.emplace_back(static_cast<std::size_t>(layer), places);
    });
    for (const auto& [layer, places] : layers)
      KVTILT_RETURN_IF_ERROR(launch_save_layer(
          {storages_[layer], static_cast<int>(id.slot), *device, places}, stream));
    return {};
  };
  Status launched = launch();
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), "saving a sequence"));
  KVTILT_RETURN_IF_ERROR(std::move(launched));
  // The host writes only now: not all memory may be written from both sides at once.
  write_saved(id, *length, image, [](int, const SavedPlaces&) {});
  return {};
}

inline Result<SequenceId> KVCache::load(std::span<const std::byte> image, std::int64_t tokens,
                                        cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "load"));
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  Result<SavedReader> saved =
      SavedReader::open(image, layout_.layers, token_placement(options_, {}));
  if (!saved) return std::move(saved).take_status();
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
      KVTILT_RETURN_IF_ERROR(launch_load_layer({storages_[layer], slot, *device, places}, stream));
    }
    return {};
  };
  Status made = launch();
  if (made.ok()) return id;
  static_cast<void>(book_.close(*id));  // nobody knows its slot
  return static_cast<Status&&>(made);
}

}  // namespace kvtilt::cuda
