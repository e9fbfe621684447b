// SPDX-License-Identifier: MIT
/// A growable array of plain data that reports exhausted memory instead of throwing.
#pragma once

#include <kvtilt/cache/allocator.hpp>

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

namespace kvtilt {

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Buffer(const Allocator& allocator) : allocator_(allocator) {}
  Buffer(Buffer&& other) noexcept
      : allocator_(other.allocator_),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { deallocate(); }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t capacity_bytes() const { return capacity_ * sizeof(T); }
  [[nodiscard]] T* data() { return data_; }
  [[nodiscard]] const T* data() const { return data_; }
  [[nodiscard]] T& operator[](std::size_t i) { return data_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const { return data_[i]; }
  [[nodiscard]] T& back() { return data_[size_ - 1]; }

  /// Bytes by which reserve(count) would grow it.
  [[nodiscard]] std::size_t missing_bytes(std::size_t count) const {
    return count <= capacity_ ? 0 : (count - capacity_) * sizeof(T);
  }

  /// Makes room for `count` elements; false if out of memory, and then nothing has changed.
  [[nodiscard]] bool reserve(std::size_t count) {
    if (count <= capacity_) return true;
    void* memory = allocator_.allocate(allocator_.context, count * sizeof(T), alignof(T));
    if (memory == nullptr) return false;
    if (size_ > 0) std::memcpy(memory, data_, size_ * sizeof(T));
    deallocate();
    data_ = static_cast<T*>(memory);
    capacity_ = count;
    return true;
  }

  /// The room must have been reserved: does not grow the buffer.
  void push_back(const T& value) { data_[size_++] = value; }
  [[nodiscard]] T pop_back() { return data_[--size_]; }
  /// Removes elements first to last - 1; those behind move forward.
  void erase(std::size_t first, std::size_t last) {
    if (first == last) return;
    std::memmove(data_ + first, data_ + last, (size_ - last) * sizeof(T));
    size_ -= last - first;
  }

 private:
  void deallocate() {
    if (data_ != nullptr)
      allocator_.deallocate(allocator_.context, data_, capacity_ * sizeof(T), alignof(T));
  }

  Allocator allocator_;
  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace kvtilt
