// SPDX-License-Identifier: MIT
/// Arrays in device memory, for tests that need a GPU.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace kvtilt::test {

/// First line of every test that needs a GPU.
#define KVTILT_SKIP_WITHOUT_GPU()                                                  \
  do {                                                                             \
    int kvtilt_devices = 0;                                                        \
    const cudaError_t kvtilt_error = cudaGetDeviceCount(&kvtilt_devices);          \
    if (kvtilt_error != cudaSuccess || kvtilt_devices == 0)                        \
      GTEST_SKIP() << "no GPU: cudaGetDeviceCount says " << kvtilt_devices << ", " \
                   << cudaGetErrorName(kvtilt_error);                              \
  } while (false)

inline void expect_cuda(cudaError_t error) {
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorName(error) << ": " << cudaGetErrorString(error);
}

/// An array in device memory.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    expect_cuda(cudaMalloc(&data_, size * sizeof(T) + 1));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { (void)cudaFree(data_); }

  void set(const std::vector<T>& values) {
    expect_cuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyDefault));
  }
  [[nodiscard]] T* data() const { return static_cast<T*>(data_); }
  [[nodiscard]] std::span<T> span() const { return {data(), size_}; }
  [[nodiscard]] std::vector<T> get() const {
    std::vector<T> values(size_);
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDefault));
    return values;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

/// Pinned bytes that host and device can access.
class PinnedBytes {
 public:
  explicit PinnedBytes(std::size_t size) : size_(size) {
    expect_cuda(cudaMallocHost(&data_, size + 1));
  }
  explicit PinnedBytes(const std::vector<std::byte>& bytes) : PinnedBytes(bytes.size()) {
    std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(data_));
  }
  PinnedBytes(const PinnedBytes&) = delete;
  PinnedBytes& operator=(const PinnedBytes&) = delete;
  ~PinnedBytes() { (void)cudaFreeHost(data_); }

  [[nodiscard]] std::span<std::byte> span() const {
    return {static_cast<std::byte*>(data_), size_};
  }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

template <class T>
std::vector<T> read_device(const T* data, std::size_t count) {
  std::vector<T> values(count);
  expect_cuda(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDefault));
  return values;
}

}  // namespace kvtilt::test
