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

inline float absorb(float* scores, int slots, const LaneMask* visible, SoftmaxState& state) {
  int first = 0;
  while (first < slots && visible[first / line_lanes] == 0) first += line_lanes;
  if (first == slots) {
    for (int slot = 0; slot < slots; slot += line_lanes) store(scores + slot, broadcast(0.0f));
    return 1.0f;
  }
  int lane = 0;
  while ((visible[first / line_lanes] >> lane & 1) == 0) ++lane;
  const float some = scores[first + lane];  // any visible score can stand in for the hidden ones
  F32x16 largest = broadcast(some);
  for (int slot = first; slot < slots; slot += line_lanes)
    largest = max(largest, keep(load(scores + slot), visible[slot / line_lanes], some));
  const float page_maximum = reduce_max(largest);
  float shrink = 1.0f;
  if (state.empty()) {
    state.maximum = page_maximum;
  } else if (page_maximum > state.maximum) {
    float factor[line_lanes];
    store(factor, exp2_of_negative(broadcast(state.maximum - page_maximum)));
    shrink = factor[0];
    state.maximum = page_maximum;
  }
  F32x16 total = broadcast(0.0f);
  for (int slot = 0; slot < slots; slot += line_lanes) {
    // Hidden slots hold anything; above 0 their exponents would overflow an integer.
    const F32x16 below = min(sub(load(scores + slot), broadcast(state.maximum)), broadcast(0.0f));
    const F32x16 power = exp2_of_negative(below);
    const F32x16 kept = keep(power, visible[slot / line_lanes], 0.0f);
    store(scores + slot, kept);
    total = add(total, kept);
  }
  state.sum = state.sum * shrink + reduce_add(total);
  return shrink;
}

inline void scale(float* values, int count, float factor) {
  for (int i = 0; i < count; i += line_lanes)
    store(values + i, mul(load(values + i), broadcast(factor)));
}
