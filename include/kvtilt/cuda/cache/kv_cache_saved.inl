// SPDX-License-Identifier: MIT
// Members of cuda::KVCache that save sequences and load them; included by kv_cache.cuh.

namespace kvtilt::cuda {

/// The device address of memory that the host can read and write, too; refuses any other memory.
inline Result<std::byte*> KVCache::device_address(std::span<const std::byte> image) {
  cudaPointerAttributes first{};
  cudaPointerAttributes last{};
  cudaError_t error = cudaSuccess;
  if (!image.empty()) error = cudaPointerGetAttributes(&first, image.data());
  if (!image.empty() && error == cudaSuccess)
    error = cudaPointerGetAttributes(&last, &image.back());
  if (error == cudaErrorInvalidValue)
    (void)cudaGetLastError();  // memory that CUDA does not know: refused below
  else
    KVTILT_RETURN_IF_ERROR(to_status(error, "looking at an image"));
  const auto both = [](const cudaPointerAttributes& of) {
    return of.type == cudaMemoryTypeHost || of.type == cudaMemoryTypeManaged;
  };
  constexpr std::size_t alignment = 16;
  std::byte* address = static_cast<std::byte*>(first.devicePointer);
  if (error != cudaSuccess || !both(first) || !both(last) ||
      last.devicePointer != address + (image.size() - 1) ||
      reinterpret_cast<std::uintptr_t>(address) % alignment != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "the image, %zu bytes at %p, must be pinned or managed memory at a "
                         "multiple of %zu, which host and device both reach: cudaMallocHost, "
                         "cudaHostRegister or cudaMallocManaged",
                         image.size(), static_cast<const void*>(image.data()), alignment);
  return address;
}

/// Writes an image but for blocks and checksum, and calls act(layer, saved, places) for each layer
/// that keeps a cache. Writes nothing if the image is empty.
template <class Act>
SavedWriter KVCache::write_tables(SequenceId id, std::int64_t length, std::span<std::byte> image,
                                  Act act) const {
  SavedWriter writer(image, layers(), length, token_placement(options_, {}), options_.fingerprint);
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
    const SavedPlaces places = writer.add_layer(of.shape, of.layouts, saved, [&](std::int32_t i) {
      return SavedPage{table[i].first_position, table[i].tokens};
    });
    act(layer, saved, places);
  }
  return writer;
}

/// Calls `launch`, waits for the stream, and returns the checksum of the blocks that were moved.
template <class Launch>
Result<std::uint64_t> KVCache::sum_of_blocks(Launch launch, cudaStream_t stream) const {
  const char* const what = "moving a sequence";
  SavedResult result{};
  KVTILT_RETURN_IF_ERROR(
      to_status(cudaMemsetAsync(saved_result(), 0, sizeof result, stream), what));
  Status launched = launch();
  Status read = to_status(
      cudaMemcpyAsync(&result, saved_result(), sizeof result, cudaMemcpyDeviceToHost, stream),
      what);
  // Waits even after an error: what was queued may still use the caller's memory.
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamSynchronize(stream), what));
  KVTILT_RETURN_IF_ERROR(std::move(launched));
  KVTILT_RETURN_IF_ERROR(std::move(read));
  if (result.refusals > 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "moving a sequence: %llu layers of it changed meanwhile; streams that "
                         "touch a sequence must be ordered",
                         static_cast<unsigned long long>(result.refusals));
  return result.sum;
}

inline Result<std::size_t> KVCache::saved_bytes(SequenceId id) const {
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  return write_tables(id, *length, {}, [](int, const SavedLayer&, const SavedPlaces&) {}).bytes();
}

inline Status KVCache::save(SequenceId id, std::span<std::byte> image, cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "save"));
  KVTILT_RETURN_IF_ERROR(refresh(id, stream));
  Result<std::int64_t> length = book_.common_length(id, "save");
  if (!length) return std::move(length).take_status();
  std::vector<SaveArguments> layers;
  const auto add = [&](int layer, const SavedLayer& saved, const SavedPlaces& places) {
    layers.push_back({views_[static_cast<std::size_t>(layer)], static_cast<int>(id.slot), nullptr,
                      *length, saved, places, saved_result()});
  };
  const std::size_t bytes = write_tables(id, *length, {}, add).bytes();
  if (image.size() != bytes)
    return Status::error(ErrorCode::InvalidArgument,
                         "sequence %u takes %zu bytes to save; the image has %zu", id.slot, bytes,
                         image.size());
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  const auto launch = [&]() -> Status {
    for (SaveArguments& layer : layers) {
      layer.image = *device;
      KVTILT_RETURN_IF_ERROR(launch_save_layer(layer, stream));
    }
    return {};
  };
  Result<std::uint64_t> sum = sum_of_blocks(launch, stream);
  if (!sum) return std::move(sum).take_status();
  // The host writes last: not all managed memory may be touched by it while kernels run.
  write_tables(id, *length, image, [](int, const SavedLayer&, const SavedPlaces&) {}).finish(*sum);
  return {};
}

inline Result<SequenceId> KVCache::load(std::span<const std::byte> image, std::int64_t tokens,
                                        cudaStream_t stream) {
  KVTILT_RETURN_IF_ERROR(refuse_capture(stream, "load"));
  Result<std::byte*> device = device_address(image);
  if (!device) return std::move(device).take_status();
  Result<SavedReader> saved = SavedReader::open(image);
  if (!saved) return std::move(saved).take_status();
  KVTILT_RETURN_IF_ERROR(
      saved->check_tables(layout_.layers, token_placement(options_, {}), options_.fingerprint));
  KVTILT_RETURN_IF_ERROR(saved->check_values(layout_.layers));
  given_.clear();
  Result<SequenceId> id = book_.load(*saved, tokens, given_);
  if (!id) return id;
  const int slot = static_cast<int>(id->slot);
  std::vector<LoadArguments> layers;  // built before kernels run, as the host reads the image
  for (std::size_t layer = 0; layer < views_.size(); ++layer)
    if (views_[layer].kv_heads > 0)
      layers.push_back({views_[layer], slot, *device, saved->length(), saved->layer(layer),
                        saved->places(layer, layout_.layers[layer].layouts), saved_result()});
  const auto launch = [&]() -> Status {
    KVTILT_RETURN_IF_ERROR(launch_reset(device_layers(), slot, stream));
    KVTILT_RETURN_IF_ERROR(launch_give_pages(device_layers(), slot, given_, stream));
    for (const LoadArguments& layer : layers) {
      KVTILT_RETURN_IF_ERROR(launch_load_tables(layer, stream));
      KVTILT_RETURN_IF_ERROR(launch_load_layer(layer, stream));
    }
    return {};
  };
  const auto load = [&]() -> Status {
    Result<std::uint64_t> sum = sum_of_blocks(launch, stream);
    if (!sum) return std::move(sum).take_status();
    return saved->verify_checksum(*sum, layout_.layers);
  };
  Status loaded = load();
  if (loaded.ok()) return id;
  static_cast<void>(book_.close(*id));  // unknown to callers and to running kernels
  return static_cast<Status&&>(loaded);
}

}  // namespace kvtilt::cuda
