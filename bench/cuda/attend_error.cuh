// SPDX-License-Identifier: MIT
/// The error of a decode step on the GPU against float64.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/cache/unpack.cuh>

#include "layer_data.cuh"
#include "probe_support.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace kvtilt::bench {

/// The unpacked rows of one kv head of a sequence, on the host.
class HeadRows {
 public:
  HeadRows(const DeviceArray<float>& rows, const LayerShape& shape, std::int64_t tokens, int head)
      : dim_(shape.key_dim), numbers_(static_cast<std::size_t>(tokens * dim_)) {
    const std::size_t row = static_cast<std::size_t>(dim_) * sizeof(float);
    KVTILT_CHECK(cudaMemcpy2D(numbers_.data(), row, rows.data() + head * dim_,
                              row * static_cast<std::size_t>(shape.kv_heads), row,
                              static_cast<std::size_t>(tokens), cudaMemcpyDeviceToHost));
  }
  [[nodiscard]] const float* row(std::int64_t token) const { return &numbers_[token * dim_]; }
  [[nodiscard]] double largest() const {
    float most = 0;
    for (const float x : numbers_) most = std::max(most, std::abs(x));
    return most;
  }

 private:
  std::int64_t dim_;
  std::vector<float> numbers_;
};

/// Error of one query head of a decode step against float64 attention over unpack()'s values,
/// relative to the norm of the output or, if outputs cancel, to a tenth of the largest value.
/// key_dim must equal value_dim.
///
/// queries, out  host, [sequences, query_heads, dim]
inline double attend_error(const LayerData& data, const LayerShape& shape, int sequence,
                           std::int64_t tokens, int query_head, int query_heads,
                           const std::vector<F16>& queries, const std::vector<F16>& out) {
  const int dim = shape.key_dim;
  const std::size_t elements = static_cast<std::size_t>(tokens) * shape.kv_heads * dim;
  const DeviceArray<float> all_keys(elements);
  const DeviceArray<float> all_values(elements);
  KVTILT_CHECK(cuda::launch_unpack({data.layer(),
                                    sequence,
                                    0,
                                    tokens,
                                    {all_keys.data(), tokens, shape.kv_heads, dim},
                                    {all_values.data(), tokens, shape.kv_heads, dim}},
                                   nullptr));
  finish();
  const int kv_head = query_head / (query_heads / shape.kv_heads);
  const HeadRows keys(all_keys, shape, tokens, kv_head);
  const HeadRows values(all_values, shape, tokens, kv_head);
  const std::size_t row = (static_cast<std::size_t>(sequence) * query_heads + query_head) * dim;
  std::vector<double> scores;
  for (std::int64_t token = 0; token < tokens; ++token) {
    double sum = 0;
    for (int i = 0; i < dim; ++i)
      sum += static_cast<double>(to_float(queries[row + i])) * keys.row(token)[i];
    scores.push_back(sum / std::sqrt(dim));
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double weights = 0;
  std::vector<double> sums(dim);
  for (std::int64_t token = 0; token < tokens; ++token) {
    const double weight = std::exp(scores[token] - most);
    weights += weight;
    for (int i = 0; i < dim; ++i) sums[i] += weight * values.row(token)[i];
  }
  double error = 0, norm = 0;
  for (int i = 0; i < dim; ++i) {
    const double exact = sums[i] / weights;
    const double found = to_float(out[row + i]);
    error += (found - exact) * (found - exact);
    norm += exact * exact;
  }
  return std::sqrt(error) / std::max(std::sqrt(norm), 0.1 * values.largest());
}

}  // namespace kvtilt::bench
