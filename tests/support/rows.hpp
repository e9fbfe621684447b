// SPDX-License-Identifier: MIT
/// Owned [tokens, heads, dim] rows to put into a cache, with numbers reproducible on every machine.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/tensor_view.hpp>

#include "support/random.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// Owned rows. T is float, F16 or BF16.
template <class T>
struct Rows {
  std::int64_t tokens = 0;
  int heads = 0;
  int dim = 0;
  std::vector<T> data;

  Rows(std::int64_t tokens_, int heads_, int dim_)
      : tokens(tokens_), heads(heads_), dim(dim_), data(count(tokens_)) {}

  [[nodiscard]] T& at(std::int64_t token, int head, int channel) {
    return data[count(token) + static_cast<std::size_t>(head * dim + channel)];
  }
  [[nodiscard]] const T& at(std::int64_t token, int head, int channel) const {
    return data[count(token) + static_cast<std::size_t>(head * dim + channel)];
  }
  [[nodiscard]] TensorView view() const { return view(0, tokens); }
  [[nodiscard]] TensorView view(std::int64_t first, std::int64_t some) const {
    return {data.data() + count(first), some, heads, dim};
  }
  [[nodiscard]] MutableTensorView out() { return {data.data(), tokens, heads, dim}; }

 private:
  [[nodiscard]] std::size_t count(std::int64_t rows) const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(heads * dim);
  }
};

inline Rows<float> random_rows(Random& random, std::int64_t tokens, int heads, int dim,
                               float spread = 1.0f, float offset = 0.0f) {
  Rows<float> rows(tokens, heads, dim);
  for (float& x : rows.data) x = offset + spread * static_cast<float>(random.sampled_normal());
  return rows;
}

/// Every element through `convert`.
template <class To, class From, class Convert>
Rows<To> converted(const Rows<From>& rows, Convert convert) {
  Rows<To> result(rows.tokens, rows.heads, rows.dim);
  for (std::size_t i = 0; i < rows.data.size(); ++i) result.data[i] = convert(rows.data[i]);
  return result;
}

/// The input as a cache first rounds it: fp16, here as floats.
inline Rows<float> rounded_to_half(const Rows<float>& rows) {
  return converted<float>(rows, [](float x) { return to_float(to_f16(x)); });
}

/// What append takes as values: none if they are in the layer's keys.
inline TensorView stored_apart(const LayerShape& shape, const TensorView& values) {
  return shape.values_in_keys ? TensorView{} : values;
}

}  // namespace kvtilt::test
