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

inline float absorb(float* scores, int slots, Range valid, float& maximum, float& sum) {
  if (valid.first >= valid.last) {
    for (int slot = 0; slot < slots; slot += line_lanes) store(scores + slot, broadcast(0.0f));
    return 1.0f;
  }
  const float lowest = scores[valid.first];
  F32x16 largest = broadcast(lowest);
  for (int slot = 0; slot < slots; slot += line_lanes)
    largest = max(largest,
                  keep_lanes(load(scores + slot), valid.first - slot, valid.last - slot, lowest));
  const float page_maximum = reduce_max(largest);
  float shrink = 1.0f;
  if (sum == 0.0f) {
    maximum = page_maximum;  // the first tokens seen: nothing to shrink yet
  } else if (page_maximum > maximum) {
    float factor[line_lanes];
    store(factor, exp2_of_negative(broadcast(maximum - page_maximum)));
    shrink = factor[0];
    maximum = page_maximum;
  }
  F32x16 total = broadcast(0.0f);
  for (int slot = 0; slot < slots; slot += line_lanes) {
    // Slots without a token hold anything; above 0 their exponents would overflow an integer.
    const F32x16 below = min(sub(load(scores + slot), broadcast(maximum)), broadcast(0.0f));
    const F32x16 power = exp2_of_negative(below);
    const F32x16 kept = keep_lanes(power, valid.first - slot, valid.last - slot, 0.0f);
    store(scores + slot, kept);
    total = add(total, kept);
  }
  sum = sum * shrink + reduce_add(total);
  return shrink;
}

inline void scale(float* values, int count, float factor) {
  for (int i = 0; i < count; i += line_lanes)
    store(values + i, mul(load(values + i), broadcast(factor)));
}
