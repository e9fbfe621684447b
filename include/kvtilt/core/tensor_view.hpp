// SPDX-License-Identifier: MIT
/// Non-owning views of an engine's own tensors: [tokens, heads, dim] with strides.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/half.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt {

enum class ElementType : std::uint8_t { F32, F16, BF16 };

constexpr const char* to_string(ElementType type) {
  return type == ElementType::F32 ? "f32" : type == ElementType::F16 ? "f16" : "bf16";
}

/// Whether a type that came as a number is one of them.
constexpr bool is_element_type(ElementType type) { return type <= ElementType::BF16; }

KVTILT_HD constexpr std::size_t element_bytes(ElementType type) {
  return type == ElementType::F32 ? 4 : 2;
}

/// Read-only [tokens, heads, dim] tensor of f32, f16 or bf16. Channels are contiguous; tokens and
/// heads may lie anywhere, so both [tokens, heads, dim] and [heads, tokens, dim] fit. Strides count
/// elements and may be negative.
struct TensorView {
  const void* data = nullptr;
  ElementType type = ElementType::F32;
  std::int64_t tokens = 0;
  int heads = 0;
  int dim = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  constexpr TensorView() = default;
  constexpr TensorView(const float* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, ElementType::F32, tokens_, heads_, dim_) {}
  constexpr TensorView(const F16* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, ElementType::F16, tokens_, heads_, dim_) {}
  constexpr TensorView(const BF16* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, ElementType::BF16, tokens_, heads_, dim_) {}
  /// For an element type that is known at run time only.
  constexpr TensorView(const void* data_, ElementType type_, std::int64_t tokens_, int heads_,
                       int dim_)
      : data(data_),
        type(type_),
        tokens(tokens_),
        heads(heads_),
        dim(dim_),
        token_stride(static_cast<std::int64_t>(heads_) * dim_),
        head_stride(dim_) {}

  [[nodiscard]] constexpr TensorView with_strides(std::int64_t token, std::int64_t head) const {
    TensorView view = *this;
    view.token_stride = token;
    view.head_stride = head;
    return view;
  }

  /// Address of channel 0 of one head of one token.
  template <class T>
  [[nodiscard]] const T* row(std::int64_t token, int head) const {
    return static_cast<const T*>(data) + token * token_stride + head * head_stride;
  }
};

/// Element (token, head, channel) as a float.
inline float element(const TensorView& tensor, std::int64_t token, int head, int channel) {
  switch (tensor.type) {
    case ElementType::F32:
      return tensor.row<float>(token, head)[channel];
    case ElementType::F16:
      return to_float(tensor.row<F16>(token, head)[channel]);
    case ElementType::BF16:
      return to_float(tensor.row<BF16>(token, head)[channel]);
  }
  return 0.0f;
}

/// A TensorView whose elements may be written too.
struct MutableTensorView : TensorView {
  constexpr MutableTensorView() = default;
  constexpr MutableTensorView(float* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, tokens_, heads_, dim_) {}
  constexpr MutableTensorView(F16* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, tokens_, heads_, dim_) {}
  constexpr MutableTensorView(BF16* data_, std::int64_t tokens_, int heads_, int dim_)
      : TensorView(data_, tokens_, heads_, dim_) {}
  constexpr MutableTensorView(void* data_, ElementType type_, std::int64_t tokens_, int heads_,
                              int dim_)
      : TensorView(data_, type_, tokens_, heads_, dim_) {}

  [[nodiscard]] constexpr MutableTensorView with_strides(std::int64_t token,
                                                         std::int64_t head) const {
    MutableTensorView view = *this;
    view.token_stride = token;
    view.head_stride = head;
    return view;
  }

  /// Address of channel 0 of one head of one token, whatever the type.
  [[nodiscard]] std::byte* address(std::int64_t token, int head) const {
    std::byte* bytes = static_cast<std::byte*>(const_cast<void*>(data));  // constructed non-const
    return bytes + (token * token_stride + head * head_stride) *
                       static_cast<std::int64_t>(element_bytes(type));
  }
};

/// Where attention writes: [tokens, heads, dim] float, and optionally the log-sum-exp of every
/// (token, head) as [tokens, heads] float, contiguous.
struct OutputView {
  float* data = nullptr;
  std::int64_t tokens = 0;
  int heads = 0;
  int dim = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  float* lse = nullptr;  ///< natural logarithm; null: not written

  constexpr OutputView() = default;
  constexpr OutputView(float* data_, std::int64_t tokens_, int heads_, int dim_,
                       float* lse_ = nullptr)
      : data(data_),
        tokens(tokens_),
        heads(heads_),
        dim(dim_),
        token_stride(static_cast<std::int64_t>(heads_) * dim_),
        head_stride(dim_),
        lse(lse_) {}

  [[nodiscard]] constexpr OutputView with_strides(std::int64_t token, std::int64_t head) const {
    OutputView view = *this;
    view.token_stride = token;
    view.head_stride = head;
    return view;
  }

  [[nodiscard]] constexpr float* row(std::int64_t token, int head) const {
    return data + token * token_stride + head * head_stride;
  }
};

}  // namespace kvtilt
