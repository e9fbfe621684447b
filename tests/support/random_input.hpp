// SPDX-License-Identifier: MIT
/// Random numbers as an engine might hold them: any element type, any strides, and NaN patterns
/// wherever the view does not point.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/tensor_view.hpp>

#include "support/random.hpp"
#include "support/rows.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

class RandomInput {
 public:
  /// If `may_be_constant`, one in eight holds the same number everywhere.
  RandomInput(Random& random, std::int64_t tokens, int heads, int dim, bool may_be_constant = true)
      : rows_(tokens, heads, dim), type_(static_cast<ElementType>(random.below(3))) {
    const float constant = may_be_constant ? 0.0f : 1.0f;
    const float spread = random.chance(8) ? constant : random.chance(8) ? 20.0f : 1.0f;
    const float offset = random.chance(4) ? 20.0f : 0.0f;
    for (float& x : rows_.data)
      x = rounded(offset + spread * static_cast<float>(random.sampled_normal()));
    lay_out(random);
  }

  /// What append takes as values: nothing if they are in the keys.
  [[nodiscard]] static RandomInput values(Random& random, std::int64_t tokens,
                                          const LayerShape& shape) {
    if (shape.values_in_keys) return {random, 0, 0, 0};
    return {random, tokens, shape.kv_heads, shape.value_dim};
  }

  /// The exact values that the view holds.
  [[nodiscard]] const Rows<float>& rows() const { return rows_; }

  [[nodiscard]] TensorView view() const { return view_of(bytes_.data()); }

  /// The memory that the view lies in, and the same view of a copy of that memory.
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }
  [[nodiscard]] TensorView view_of(const std::byte* copy) const {
    const std::byte* first = copy + static_cast<std::size_t>(origin_) * element_bytes(type_);
    return TensorView(first, type_, rows_.tokens, rows_.heads, rows_.dim)
        .with_strides(token_stride_, head_stride_);
  }

  /// Overwrites one element with the bits of a float, or with their upper half.
  void spoil(std::int64_t token, int head, int channel, std::uint32_t bits) {
    store(origin_ + token * token_stride_ + head * head_stride_ + channel,
          type_ == ElementType::F32 ? bits : bits >> 16);
  }

 private:
  [[nodiscard]] float rounded(float x) const {
    return type_ == ElementType::F32   ? x
           : type_ == ElementType::F16 ? to_float(to_f16(x))
                                       : to_float(to_bf16(x));
  }

  void store(std::int64_t index, std::uint32_t bits) {
    std::byte* place = bytes_.data() + static_cast<std::size_t>(index) * element_bytes(type_);
    const std::uint16_t half = static_cast<std::uint16_t>(bits);
    if (type_ == ElementType::F32)
      std::memcpy(place, &bits, 4);
    else
      std::memcpy(place, &half, 2);
  }

  void lay_out(Random& random) {
    const std::int64_t row = rows_.dim + random.below(3);
    const bool heads_first = random.chance(3);
    token_stride_ = heads_first ? row : row * rows_.heads;
    head_stride_ = heads_first ? row * rows_.tokens : row;
    bytes_.assign(static_cast<std::size_t>(row * rows_.heads * rows_.tokens) * element_bytes(type_),
                  std::byte{0xff});
    if (rows_.tokens == 0) return;
    if (random.chance(3)) {  // the last token first
      origin_ = (rows_.tokens - 1) * token_stride_;
      token_stride_ = -token_stride_;
    }
    for (std::int64_t token = 0; token < rows_.tokens; ++token)
      for (int head = 0; head < rows_.heads; ++head)
        for (int channel = 0; channel < rows_.dim; ++channel) {
          const float x = rows_.at(token, head, channel);
          store(origin_ + token * token_stride_ + head * head_stride_ + channel,
                type_ == ElementType::F32   ? bit_cast<std::uint32_t>(x)
                : type_ == ElementType::F16 ? to_f16(x).bits
                                            : to_bf16(x).bits);
        }
  }

  Rows<float> rows_;
  ElementType type_;
  std::vector<std::byte> bytes_;
  std::int64_t origin_ = 0;
  std::int64_t token_stride_ = 0;
  std::int64_t head_stride_ = 0;
};

}  // namespace kvtilt::test
