// SPDX-License-Identifier: MIT
/// A range of device memory that is owned, or borrowed from the caller.
#pragma once

#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/error.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <utility>

namespace kvtilt::cuda {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), owned_(std::exchange(other.owned_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() {
    if (owned_ != nullptr) (void)cudaFree(owned_);
  }

  /// Takes `bytes` at a multiple of 256: from `given` if not empty, else of the current device.
  static Result<DeviceMemory> take(std::size_t bytes, std::span<std::byte> given) {
    DeviceMemory memory;
    if (given.empty()) {
      KVTILT_RETURN_IF_ERROR(to_status(cudaMalloc(&memory.owned_, bytes), "taking device memory"));
      memory.data_ = static_cast<std::byte*>(memory.owned_);
      return Result<DeviceMemory>(std::move(memory));
    }
    const std::span<std::byte> usable = detail::usable_memory(given);
    if (bytes > usable.size())
      return Status::error(ErrorCode::OutOfMemory,
                           "the cache takes %zu bytes at a multiple of %zu; device_memory, %zu "
                           "bytes at %p, has %zu from the first multiple on",
                           bytes, detail::device_alignment, given.size(),
                           static_cast<void*>(given.data()), usable.size());
    memory.data_ = usable.data();
    return Result<DeviceMemory>(std::move(memory));
  }

  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  void* owned_ = nullptr;
};

}  // namespace kvtilt::cuda
