// SPDX-License-Identifier: MIT
/// Stores rows to an engine's tensor, a few neighbouring channels at a time.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstdint>

namespace kvtilt::cuda::detail {

/// The rows of one head in the output tensor, of element type T.
template <class T>
class OutputRows {
 public:
  KVTILT_HD OutputRows(const MutableTensorView& rows, std::int64_t first_row, int head)
      : data_(static_cast<T*>(const_cast<void*>(rows.data)) + first_row * rows.token_stride +
              head * rows.head_stride),
        stride_(rows.token_stride),
        aligned_(reinterpret_cast<std::uintptr_t>(data_) % (4 * sizeof(T)) == 0 &&
                 stride_ % 4 == 0) {}

  /// Whether rows may be stored four channels at a time.
  [[nodiscard]] KVTILT_HD bool aligned() const { return aligned_; }
  /// Whether 16 bytes may be stored at a time.
  [[nodiscard]] KVTILT_HD bool aligned_to_16() const {
    constexpr int elements = 16 / static_cast<int>(sizeof(T));
    return reinterpret_cast<std::uintptr_t>(data_) % 16 == 0 && stride_ % elements == 0;
  }
  [[nodiscard]] KVTILT_HD std::int64_t stride() const { return stride_; }
  [[nodiscard]] KVTILT_HD T* at(int token, int channel) const {
    return data_ + token * stride_ + channel;
  }

  /// Stores Count neighbouring channels; `channel` is a multiple of Count.
  template <int Count>
  KVTILT_HD void store(int token, int channel, const float (&x)[Count]) const {
    T* to = at(token, channel);
    if (aligned_) {
      store_aligned(to, x);
      return;
    }
    const Run<Count> run(x);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) {
      if constexpr (sizeof(T) == 4)
        to[i] = bit_cast<float>(run.word[i]);
      else
        to[i].bits = static_cast<std::uint16_t>(run.word[i / 2] >> (16 * (i % 2)));
    }
  }

  template <int Count>
  KVTILT_HD static void store_aligned(T* to, const float (&x)[Count]) {
    *reinterpret_cast<Run<Count>*>(to) = Run<Count>(x);
  }

 private:
  /// Numbers rounded to T.
  template <int Count>
  struct [[gnu::may_alias]] alignas(Count * sizeof(T)) Run {
    std::uint32_t word[Count * sizeof(T) / 4];

    KVTILT_HD explicit Run(const float (&x)[Count]) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < Count; i += 2) {
        if constexpr (sizeof(T) == 4) {
          word[i] = bit_cast<std::uint32_t>(x[i]);
          word[i + 1] = bit_cast<std::uint32_t>(x[i + 1]);
        } else {
          word[i / 2] = __is_same(T, F16) ? pack_halves(x[i], x[i + 1]) : pack_bf16(x[i], x[i + 1]);
        }
      }
    }
  };

  T* data_;
  std::int64_t stride_;
  bool aligned_;
};

}  // namespace kvtilt::cuda::detail
