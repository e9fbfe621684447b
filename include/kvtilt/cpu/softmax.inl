// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.

/// 2^x for x <= 0, relative error below 3e-7; anything below 2^-126 counts as 2^-126.
inline F32x16 exp2_of_negative(const F32x16& x) {
  I32x16 whole;
  const F32x16 rest = split_exponent(max(x, broadcast(-126.0f)), whole);
  // Taylor's coefficients ln(2)^k / k!: the next term is below 1.2e-7 for |rest| <= 1/2.
  F32x16 power = broadcast(1.5403530e-4f);
  power = multiply_add(power, rest, broadcast(1.3333558e-3f));
  power = multiply_add(power, rest, broadcast(9.6181291e-3f));
  power = multiply_add(power, rest, broadcast(5.5504109e-2f));
  power = multiply_add(power, rest, broadcast(2.4022651e-1f));
  power = multiply_add(power, rest, broadcast(6.9314718e-1f));
  power = multiply_add(power, rest, broadcast(1.0f));
  return scale_by_exponent(power, whole);
}

/// tanh(x), absolute error below 2e-7: the series near 0, where the quotient would cancel.
inline F32x16 tanh_of(const F32x16& x) {
  const F32x16 size = magnitude(x);
  const F32x16 square = mul(size, size);
  F32x16 series = broadcast(-0.0088632355f);  // -1382/155925, then upwards
  series = multiply_add(series, square, broadcast(0.021869488f));
  series = multiply_add(series, square, broadcast(-0.053968254f));
  series = multiply_add(series, square, broadcast(0.13333333f));
  series = multiply_add(series, square, broadcast(-0.33333333f));
  series = multiply_add(mul(series, square), size, size);
  const F32x16 power = exp2_of_negative(mul(size, broadcast(-2.8853901f)));  // e^(-2 size)
  const F32x16 quotient = divide(sub(broadcast(1.0f), power), add(broadcast(1.0f), power));
  const LaneMask small = less(size, broadcast(0.35f));
  const F32x16 chosen =
      add(keep(series, small, 0.0f), keep(quotient, static_cast<LaneMask>(~small), 0.0f));
  return with_sign(chosen, x);
}

inline void shape(float* scores, int slots, const LogitRule& rule, float offset) {
  for (int slot = 0; slot < slots; slot += line_lanes) {
    F32x16 score = load(scores + slot);
    if (rule.cap > 0.0f) score = mul(tanh_of(score), broadcast(rule.cap));
    const F32x16 distance = add(lane_indices(), broadcast(offset + static_cast<float>(slot)));
    store(scores + slot, multiply_add(distance, broadcast(rule.slope), score));
  }
}

/// absorb() for `Tile` rows at a time: their chains of operations overlap.
template <int Tile>
inline void absorb_rows(Rows<float> scores, int slots, Rows<const LaneMask> visible,
                        SoftmaxState* states, float* shrinks) {
  constexpr float lowest = -3.0e38f;  // stands in for hidden scores
  F32x16 lanes[row_tile];
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    lanes[r] = broadcast(lowest);
    if (r >= Tile) continue;
    for (int slot = 0; slot < slots; slot += line_lanes)
      lanes[r] = max(lanes[r], keep(load(scores[r] + slot), visible[r][slot / line_lanes], lowest));
  }
  float largest[row_tile];
  reduce_max(lanes, largest);
  float old[line_lanes] = {};
  for (int r = 0; r < Tile; ++r) {
    SoftmaxState& state = states[r];
    if (state.empty())
      state.maximum = largest[r] > lowest ? largest[r] : 0.0f;
    else if (largest[r] > state.maximum) {
      old[r] = state.maximum - largest[r];
      state.maximum = largest[r];
    }
  }
  store(old, exp2_of_negative(load(old)));
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    lanes[r] = broadcast(0.0f);
    if (r >= Tile) continue;
    const F32x16 maximum = broadcast(states[r].maximum);
    float* row = scores[r];
    for (int slot = 0; slot < slots; slot += line_lanes) {
      // Hidden slots hold anything; above 0 their exponents would overflow an integer.
      const F32x16 below = min(sub(load(row + slot), maximum), broadcast(0.0f));
      const F32x16 kept = keep(exp2_of_negative(below), visible[r][slot / line_lanes], 0.0f);
      store(row + slot, kept);
      lanes[r] = add(lanes[r], kept);
    }
  }
  float sums[row_tile];
  reduce_add(lanes, sums);
  for (int r = 0; r < Tile; ++r) {
    shrinks[r] = old[r];
    states[r].sum = states[r].sum * old[r] + sums[r];
  }
}

inline void absorb(Rows<float> scores, int rows, int slots, Rows<const LaneMask> visible,
                   SoftmaxState* states, float* shrinks) {
  for (int row = 0; row < rows;) {
    const Rows<float> scores_left{scores[row], scores.stride};
    const Rows<const LaneMask> visible_left{visible[row], visible.stride};
    if (rows - row >= row_tile) {
      absorb_rows<row_tile>(scores_left, slots, visible_left, states + row, shrinks + row);
      row += row_tile;
    } else {
      absorb_rows<1>(scores_left, slots, visible_left, states + row, shrinks + row);
      ++row;
    }
  }
}

inline void scale(float* values, int count, float factor) {
  for (int i = 0; i < count; i += line_lanes)
    store(values + i, mul(load(values + i), broadcast(factor)));
}
