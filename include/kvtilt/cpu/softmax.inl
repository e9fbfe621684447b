// SPDX-License-Identifier: MIT
// Generic kernel, included once per instruction set inside its namespace and target region.
// Soft-cap, ALiBi and the running softmax.

/// 2^x for x <= 0, relative error below 3e-7; anything below 2^-126 counts as 2^-126.
inline F32x16 exp2_of_negative(const F32x16& x) {
  const F32x16 clamped = max(x, broadcast(-126.0f));
  const F32x16 whole = to_whole(clamped);
  const F32x16 rest = sub(clamped, whole);
  // Least relative error on [-1/2, 1/2] among polynomials that are 1 at 0: 0.9e-7.
  F32x16 power = broadcast(1.3264727e-3f);
  power = multiply_add(power, rest, broadcast(9.6715130e-3f));
  power = multiply_add(power, rest, broadcast(5.5507336e-2f));
  power = multiply_add(power, rest, broadcast(2.4022242e-1f));
  power = multiply_add(power, rest, broadcast(6.9314700e-1f));
  power = multiply_add(power, rest, broadcast(1.0f));
  return scale_by_exponent(power, whole);
}

/// tanh(x), absolute error below 2e-7. Uses the series near 0, where the quotient loses digits.
inline F32x16 tanh_of(const F32x16& x) {
  const F32x16 size = magnitude(x);
  const F32x16 square = mul(size, size);
  F32x16 series = broadcast(-0.0088632355f);  // -1382/155925, highest coefficient first
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

inline void transform_logits(float* scores, int slots, const LogitRule& rule, float offset) {
  for (int slot = 0; slot < slots; slot += line_lanes) {
    F32x16 score = load(scores + slot);
    if (rule.cap > 0.0f) score = mul(tanh_of(score), broadcast(rule.cap));
    const F32x16 distance = add(lane_indices(), broadcast(offset + static_cast<float>(slot)));
    store(scores + slot, multiply_add(distance, broadcast(rule.slope), score));
  }
}

/// Raises the maximum of each row to `highest` if that is larger, and rescales the row's sums.
template <int Tile>
inline void raise_maxima(const F32x16 (&highest)[row_tile], RunningSoftmax* rows, float* shrinks) {
  const Floats4 largest = reduce_max(highest);
  float change[line_lanes] = {};
  for (int r = 0; r < Tile; ++r) {
    if (!(largest[r] > rows[r].maximum)) continue;
    change[r] = rows[r].maximum - largest[r];
    rows[r].maximum = largest[r];
  }
  store(change, exp2_of_negative(load(change)));
  for (int r = 0; r < Tile; ++r) {
    shrinks[r] = change[r];
    store(rows[r].sums, mul(load(rows[r].sums), broadcast(change[r])));
  }
}

/// update_softmax() for `Tile` rows at once, so that their dependency chains overlap. `All`: every
/// slot is visible. Returns whether a maximum rose.
template <int Tile, bool All>
inline bool update_softmax_rows(Rows<float> scores, int slots, Rows<const LaneMask> visible,
                                RunningSoftmax* rows, float* shrinks) {
  F32x16 highest[row_tile];
  unsigned rising = 0;
  KVTILT_UNROLL(4)
  for (int r = 0; r < row_tile; ++r) {
    highest[r] = broadcast(lowest_score);
    if (r >= Tile) continue;
    for (int slot = 0; slot < slots; slot += line_lanes) {
      F32x16 score = load(scores[r] + slot);
      if (!All) score = keep(score, visible[r][slot / line_lanes], lowest_score);
      highest[r] = max(highest[r], score);
    }
    rising |= less(broadcast(rows[r].maximum), highest[r]);
    shrinks[r] = 1.0f;
  }
  if (rising != 0) raise_maxima<Tile>(highest, rows, shrinks);
  KVTILT_UNROLL(4)
  for (int r = 0; r < Tile; ++r) {
    const F32x16 maximum = broadcast(rows[r].maximum);
    F32x16 sum = load(rows[r].sums);
    float* row = scores[r];
    for (int slot = 0; slot < slots; slot += line_lanes) {
      F32x16 below = sub(load(row + slot), maximum);
      // Hidden slots may hold anything; exponents above 0 would overflow an integer.
      if (!All) below = min(below, broadcast(0.0f));
      F32x16 weight = exp2_of_negative(below);
      if (!All) weight = keep(weight, visible[r][slot / line_lanes], 0.0f);
      store(row + slot, weight);
      sum = add(sum, weight);
    }
    store(rows[r].sums, sum);
  }
  return rising != 0;
}

template <bool All>
inline bool update_softmax_all_rows(Rows<float> scores, int rows, int slots,
                                    Rows<const LaneMask> visible, RunningSoftmax* states,
                                    float* shrinks) {
  bool rose = false;
  for (int row = 0; row < rows;) {
    const Rows<float> scores_left{scores[row], scores.stride};
    const Rows<const LaneMask> visible_left{All ? nullptr : visible[row], visible.stride};
    if (rows - row >= row_tile) {
      rose |= update_softmax_rows<row_tile, All>(scores_left, slots, visible_left, states + row,
                                                 shrinks + row);
      row += row_tile;
    } else {
      rose |= update_softmax_rows<1, All>(scores_left, slots, visible_left, states + row,
                                          shrinks + row);
      ++row;
    }
  }
  return rose;
}

inline bool update_softmax(Rows<float> scores, int rows, int slots, Rows<const LaneMask> visible,
                           RunningSoftmax* states, float* shrinks) {
  return visible.data == nullptr
             ? update_softmax_all_rows<true>(scores, rows, slots, visible, states, shrinks)
             : update_softmax_all_rows<false>(scores, rows, slots, visible, states, shrinks);
}

inline void scale(float* values, int count, float factor) {
  for (int i = 0; i < count; i += line_lanes)
    store(values + i, mul(load(values + i), broadcast(factor)));
}
