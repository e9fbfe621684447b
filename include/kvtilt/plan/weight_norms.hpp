// SPDX-License-Identifier: MIT
/// Norms of the key and value projections' weights, per layer and per kv head.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/plan/losses.hpp>
#include <kvtilt/plan/spectral_norm.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// Norms of one projection, [kv_heads * head_dim, hidden].
struct TensorNorms {
  double frobenius = 0;
  double spectral = 0;
  std::vector<double> head_frobenius;  ///< per kv head; may be empty
  std::vector<double> head_spectral;   ///< per kv head; may be empty
  double bias = 0;  ///< Euclidean norm of the bias. It offsets whole channels: per-channel groups
                    ///< store it for free (behind RoPE only where channels hardly turn within a
                    ///< page), per-token groups pay for it
  std::int64_t hidden = 0;        ///< columns; 0: unknown
  std::vector<double> head_bias;  ///< per kv head; may be empty
};

/// The weight norms that tell the scale of a layer's keys and values.
struct LayerNorms {
  TensorNorms keys;
  TensorNorms values;
  bool key_norm = false;  ///< keys pass an RMS norm after the projection (QK-norm, as in Qwen3):
                          ///< the norm of W_K then does not set their scale
  std::vector<float> key_gains;  ///< of QK-norm: [key_dim] or [kv_heads * key_dim]; may be empty
};

/// Computes the norms of a projection whose rows are ordered by kv head.
///
/// weights  [kv_heads * head_dim, hidden]
/// bias     [kv_heads * head_dim] or empty
/// Error    frobenius 1e-12; spectral: see spectral_norm
/// Fails    InvalidArgument if counts disagree, InvalidValue for NaN and infinity, Unsupported if
///          the Lanczos iteration does not converge
/// Cost     0.5 to 0.7 s for 4096 x 4096 in 32 heads
inline Result<TensorNorms> weight_norms(const WeightView& weights, int kv_heads,
                                        std::span<const float> bias = {}) {
  if (kv_heads < 1 || weights.rows % kv_heads != 0 ||
      (!bias.empty() && bias.size() != static_cast<std::size_t>(weights.rows)))
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld rows of weights and a bias of %zu for %d kv heads",
                         static_cast<long long>(weights.rows), bias.size(), kv_heads);
  TensorNorms norms;
  norms.hidden = weights.columns;
  const auto add = [](const WeightView& part, double& frobenius, double& spectral) -> Status {
    Result<double> size = frobenius_norm(part);
    if (!size) return std::move(size).take_status();
    Result<SpectralNorm> largest = spectral_norm(part, *size);
    if (!largest) return std::move(largest).take_status();
    frobenius = *size;
    spectral = largest->value;
    return {};
  };
  KVTILT_RETURN_IF_ERROR(add(weights, norms.frobenius, norms.spectral));
  const std::int64_t head_rows = weights.rows / kv_heads;
  for (int head = 0; head < kv_heads; ++head)
    KVTILT_RETURN_IF_ERROR(add(weights.slice(head * head_rows, head_rows),
                               norms.head_frobenius.emplace_back(),
                               norms.head_spectral.emplace_back()));
  std::vector<double> squares(bias.empty() ? 0 : static_cast<std::size_t>(kv_heads));
  for (std::size_t i = 0; i < bias.size(); ++i) {
    const double x = static_cast<double>(bias[i]);
    if (!detail::is_finite(x))
      return Status::error(ErrorCode::InvalidValue, "element %zu of the bias is not finite", i);
    squares[i / static_cast<std::size_t>(head_rows)] += x * x;
  }
  double sum = 0;
  for (const double square : squares) {
    norms.head_bias.push_back(std::sqrt(square));
    sum += square;
  }
  norms.bias = std::sqrt(sum);
  return norms;
}

/// How the rows of a fused query-key-value projection are ordered.
enum class FusedRows : std::uint8_t {
  Blocks,     ///< all queries, all keys, all values (Phi-3, MPT, Baichuan)
  PerKvHead,  ///< per kv head its queries, its key, its value (GPT-NeoX, BLOOM, Falcon, InternLM2)
};

/// Index of the first of the head_dim rows that produce the keys or the values of a kv head, in a
/// fused projection of (query_heads + 2 * kv_heads) * head_dim rows.
constexpr std::int64_t fused_row(FusedRows order, Role tensor, int kv_head, int query_heads,
                                 int kv_heads, int head_dim) {
  const std::int64_t block = tensor == Role::Keys ? 0 : 1;
  if (order == FusedRows::Blocks)
    return (query_heads + block * kv_heads + kv_head) * std::int64_t{head_dim};
  const std::int64_t queries = query_heads / kv_heads;
  return ((queries + 2) * kv_head + queries + block) * head_dim;
}

}  // namespace kvtilt
