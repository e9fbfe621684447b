// SPDX-License-Identifier: MIT
/// The kernels of one instruction set as function pointers: what a cache resolves once and what
/// attention calls. Every instruction set fills the same table.
#pragma once

#include <kvtilt/core/softmax_state.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cpu/contract.hpp>
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

/// Stands in for the score of a hidden slot.
inline constexpr float lowest_score = -3.0e38f;

/// A row's softmax while pages are added: its sum stays in lanes.
struct RunningSoftmax {
  float maximum = lowest_score;  ///< of the base-2 logits so far
  float sums[line_lanes] = {};   ///< of 2^(logit - maximum), by slot modulo 16

  RunningSoftmax() = default;
  explicit RunningSoftmax(const SoftmaxState& state)
      : maximum(state.empty() ? lowest_score : state.maximum), sums{state.sum} {}

  /// Never inlined: -ffast-math might add the lanes in another order at every place.
  [[nodiscard]] __attribute__((noinline)) SoftmaxState state() const {
    float sum = 0.0f;
    for (const float lane : sums) sum += lane;
    return {maximum, sum};
  }
};

/// Turns scores (base-2 logits) into probabilities relative to the running maximum of their row and
/// adds them to its running sum. Slots whose bit in `visible` (one word per 16 slots) is 0 become 0
/// whatever they hold; `slots` is a multiple of 16. `shrinks` receives the factor by which earlier
/// outputs of a row must shrink: exactly 1 where its maximum stayed. Returns whether one rose. A null
/// `visible`: all slots are visible.
using AbsorbFn = bool (*)(Rows<float> scores, int rows, int slots, Rows<const LaneMask> visible,
                          RunningSoftmax* states, float* shrinks);

/// Multiplies `count` floats (readable and writable up to a multiple of 16) by `factor`.
using ScaleFn = void (*)(float* values, int count, float factor);

/// Rows of one head of a TensorView: `count` tokens from `token` on.
struct RowRange {
  std::int64_t token;
  int count;
  int head;
};

/// Rounds rows to fp16, nearest even, and stores them in the slots `slot` on of a 16-bit tensor.
using WriteFn = void (*)(const TensorView& rows, const RowRange& range, CodeMatrix matrix,
                         F16* stored, int slot);

/// The reverse, of a tensor in any width: values from the slot `slot` on of a head's block to rows, as
/// unpack_value gives them, rounded to nearest even where the rows are not float. Slots outside of the
/// range may hold anything.
using UnpackFn = void (*)(Role role, const TensorLayout& tensor, const std::byte* block, int slot,
                          const MutableTensorView& rows, const RowRange& range);

/// Whether a row holds NaN, infinity or a magnitude above `limit` (fp16-representable).
using ExceedsFn = bool (*)(const void* row, ElementType type, int count, float limit);

inline constexpr int width_slots = 9;

/// Tables are indexed by width; 16 bits sit at 0.
constexpr int width_slot(int bits) { return bits == half_bits ? 0 : bits; }

struct Kernels {
  Isa isa;
  DotFn float_dot[width_slots];    ///< null: width not in the build's list
  DotFn integer_dot[width_slots];  ///< likewise; null also where float_dot is faster
  PackFn pack[width_slots];        ///< likewise
  ContractFn begin_contraction;
  ContractFn finish_contraction;
  ShapeFn shape;
  AbsorbFn absorb;
  ScaleFn scale;
  WriteFn write_keys;    ///< matrix [token][channel]
  WriteFn write_values;  ///< matrix [channel][token]
  UnpackFn unpack;
  ExceedsFn exceeds;

  /// Makes the first weights of a contraction; finish() does the rest. Others may begin between.
  void begin(Contracting& work, const Contraction& contraction, Sums sums) const {
    const int slot = width_slot(contraction.tensor->format.bits);
    work.contraction = contraction;
    work.rounding = Rounding(contraction, sums);
    work.dot = sums == Sums::Float ? float_dot[slot] : integer_dot[slot];
    begin_contraction(work);
  }
  void finish(Contracting& work) const { finish_contraction(work); }

  void contract(const Contraction& contraction, Sums sums) const {
    Contracting work;
    begin(work, contraction, sums);
    finish(work);
  }
};

}  // namespace kvtilt::cpu
