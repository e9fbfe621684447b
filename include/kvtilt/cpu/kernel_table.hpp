// SPDX-License-Identifier: MIT
/// The kernels of one instruction set as function pointers: what a cache resolves once and what
/// attention calls. Every instruction set fills the same table.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// One bit per lane of a line.
using LaneMask = std::uint16_t;

/// Bits first to last-1; the bounds may lie outside of 0..16.
constexpr LaneMask lanes_between(int first, int last) {
  const unsigned below_last = last <= 0 ? 0 : last >= 16 ? 0xffffu : (1u << last) - 1;
  const unsigned below_first = first <= 0 ? 0 : first >= 16 ? 0xffffu : (1u << first) - 1;
  return static_cast<LaneMask>(below_last & ~below_first);
}

/// Indices first to last-1.
struct Range {
  int first;
  int last;
};

/// A row-major float matrix whose rows start `stride` apart.
template <class T>
struct Rows {
  T* data;
  std::ptrdiff_t stride;
  [[nodiscard]] T* operator[](int row) const { return data + row * stride; }
};

/// result[r][o] += sum over i in `inner` of coefficients[r][i] * value(o, i), for o in `outer`.
///
/// The one kernel of attention: with keys, o is a token and the coefficients are a query; with
/// values, o is a channel and the coefficients are probabilities. Codes are decoded in registers,
/// once per four rows. Scales and minima are folded into the coefficients or into the sums,
/// whichever side the groups lie on.
///
/// coefficients  [rows][inner], readable up to a multiple of 16; zero outside `inner` within the
///               quads the range touches
/// result        [rows][outer], writable up to a multiple of 16; lanes outside `outer` may change
/// scratch       4 * inner floats, rounded up to 16 each
using ContractFn = void (*)(const TensorLayout& tensor, const std::byte* block,
                            Rows<const float> coefficients, int rows, Range outer, Range inner,
                            Rows<float> result, float* scratch);

/// Quantizes one 16-bit tensor (layout `half`) into `packed`. Both have the same matrix; the codes
/// of `block` must be zeros.
using PackFn = void (*)(const TensorLayout& half, const std::byte* half_block,
                        const TensorLayout& packed, std::byte* block);

/// What happens to a logit between the dot product and the softmax, in base 2.
struct LogitRule {
  float cap = 0.0f;    ///< score = cap * tanh(score); 0: score as it is
  float slope = 0.0f;  ///< added per slot, ALiBi
};

/// Applies a rule to the scores of one row: slot i gains slope * (i + offset).
using ShapeFn = void (*)(float* scores, int slots, const LogitRule& rule, float offset);

/// Turns scores (base-2 logits) into probabilities relative to the running maximum and adds them
/// to the running sum. Slots whose bit in `visible` (one word per 16 slots) is 0 become 0 whatever
/// they hold; `slots` is a multiple of 16. Returns the factor by which earlier outputs must shrink.
using AbsorbFn = float (*)(float* scores, int slots, const LaneMask* visible, SoftmaxState& state);

/// Multiplies `count` floats (readable and writable up to a multiple of 16) by `factor`.
using ScaleFn = void (*)(float* values, int count, float factor);

/// One row of `count` f32, f16 or bf16 values to fp16, nearest even.
using ToF16Fn = void (*)(const void* row, ElementType type, int count, F16* out);

inline constexpr int width_slots = 9;

/// Tables are indexed by width; 16 bits sit at 0.
constexpr int width_slot(int bits) { return bits == half_bits ? 0 : bits; }

struct Kernels {
  Isa isa;
  ContractFn contract[width_slots];  ///< null: width not in the build's list
  PackFn pack[width_slots];          ///< likewise
  ShapeFn shape;
  AbsorbFn absorb;
  ScaleFn scale;
  ToF16Fn to_f16_row;
};

}  // namespace kvtilt::cpu
