// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/state.hpp>

#include "support/attend_item.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::column_of;
using test::EmulatedThreads;
using test::outer_of;
using test::Random;

constexpr int value_dim = 64;
constexpr int shift = 4;
constexpr int bands = 2;
using State = AttendState<value_dim, shift, bands>;

/// Random states of a warp, equal where lanes share a number.
std::vector<State> random_states(Random& random, bool code_units, int exponent) {
  std::vector<State> states(32);
  for (int lane = 0; lane < 32; ++lane) {
    State& state = states[static_cast<std::size_t>(lane)];
    for (auto& tile : state.output)
      for (float& sum : tile) sum = static_cast<float>(random.normal());
    for (int column = 0; column < 2; ++column) {
      state.maximum[column] = static_cast<float>(column_of(lane, column) - 3);
      state.sum[column] = static_cast<float>(random.uniform());
      for (int band = 0; band < bands; ++band)
        state.minima[band][column] = static_cast<float>(random.normal());
    }
    state.exponent = exponent;
    state.code_units = code_units;
  }
  return states;
}

/// The real values of a state's sums, independent of their unit and of the maximum.
struct Meaning {
  std::vector<double> numbers;

  explicit Meaning(const State& state) {
    const double unit = state.code_units ? std::ldexp(1.0, 24 + state.exponent) : 1.0;
    const double odd_unit = state.code_units ? std::ldexp(unit, -shift) : 1.0;
    for (const auto& tile : state.output)
      for (int e = 0; e < 4; ++e)
        add(static_cast<double>(tile[e]) * (e < 2 ? unit : odd_unit), state.maximum[e % 2]);
    for (int column = 0; column < 2; ++column) {
      add(static_cast<double>(state.sum[column]), state.maximum[column]);
      for (const auto& band : state.minima)
        add(static_cast<double>(band[column]), state.maximum[column]);
    }
  }
  void add(double number, float maximum) {
    numbers.push_back(number * std::exp2(static_cast<double>(maximum)));
  }
};

void expect_same(const State& before, const State& after) {
  const Meaning a(before);
  const Meaning b(after);
  for (std::size_t i = 0; i < a.numbers.size(); ++i)
    EXPECT_NEAR(a.numbers[i], b.numbers[i], 1e-6 * std::abs(a.numbers[i])) << i;
}

TEST(AttendState, StartsEmpty) {
  State state;
  state.clear();
  for (const auto& tile : state.output)
    for (const float sum : tile) EXPECT_EQ(sum, 0.0f);
  EXPECT_EQ(state.maximum[0], no_maximum);
  EXPECT_EQ(state.sum[1], 0.0f);
  EXPECT_EQ(state.minima[bands - 1][1], 0.0f);
  EXPECT_FALSE(state.code_units);
}

TEST(AttendState, UnitsChangeOnlyHowNumbersAreWritten) {
  Random random(1);
  for (const int exponent : {-14, 0, 5}) {
    State state = random_states(random, false, exponent)[5];
    const State before = state;
    state.use_code_units();
    EXPECT_TRUE(state.code_units);
    expect_same(before, state);
    const float written = state.output[0][0];
    state.use_code_units();
    EXPECT_EQ(state.output[0][0], written);
    state.use_value_units();
    for (int tile = 0; tile < State::tiles; ++tile)
      for (int e = 0; e < 4; ++e) EXPECT_EQ(state.output[tile][e], before.output[tile][e]);
    state.use_value_units();
    EXPECT_EQ(state.output[1][3], before.output[1][3]);
  }
}

/// Calls raise() in all lanes; `largest` is [lane][column of the lane].
std::vector<State> raised(std::vector<State> states, const std::vector<float>& largest,
                          int needed) {
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    const std::size_t lane = static_cast<std::size_t>(threads.lane());
    const float own[2] = {largest[lane * 2], largest[lane * 2 + 1]};
    states[lane].raise(threads, own, needed);
  });
  return states;
}

TEST(AttendState, RaisesNothingWithinTheSlack) {
  Random random(2);
  const std::vector<State> states = random_states(random, true, 3);
  std::vector<float> largest(64, no_maximum);
  for (int lane = 0; lane < 32; ++lane)
    for (int column = 0; column < 2; ++column)
      largest[static_cast<std::size_t>(lane * 2 + column)] =
          states[static_cast<std::size_t>(lane)].maximum[column] + maximum_slack;
  const std::vector<State> after = raised(states, largest, 3);
  for (std::size_t lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(after[lane].maximum[0], states[lane].maximum[0]);
    EXPECT_EQ(after[lane].output[1][2], states[lane].output[1][2]);
    EXPECT_EQ(after[lane].exponent, 3);
  }
}

TEST(AttendState, RaisesToTheLargestOfAllLanesOfAColumn) {
  Random random(3);
  for (const bool code_units : {false, true})
    for (const int needed : {-14, 2, 7}) {
      const std::vector<State> states = random_states(random, code_units, 2);
      std::vector<float> largest(64, no_maximum);
      largest[13 * 2 + 1] = 40.5f;  // lane 13, column 3 (lanes 1, 5, 9, ...)
      largest[2 * 2] = 6.0f;        // lane 2, column 4: raised too, within its slack
      const std::vector<State> after = raised(states, largest, needed);
      for (int lane = 0; lane < 32; ++lane) {
        const State& before = states[static_cast<std::size_t>(lane)];
        const State& state = after[static_cast<std::size_t>(lane)];
        for (int column = 0; column < 2; ++column) {
          const int number = column_of(lane, column);
          EXPECT_EQ(state.maximum[column], number == 3   ? 40.5f
                                           : number == 4 ? 6.0f
                                                         : before.maximum[column]);
        }
        EXPECT_EQ(state.exponent, needed > 2 ? needed : 2);
        expect_same(before, state);
      }
    }
}

TEST(AttendState, AnExponentAloneIsAReasonToRaise) {
  Random random(4);
  const std::vector<State> states = random_states(random, true, 0);
  const std::vector<State> after = raised(states, std::vector<float>(64, no_maximum), 1);
  for (std::size_t lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(after[lane].exponent, 1);
    EXPECT_EQ(after[lane].output[0][0], states[lane].output[0][0] / 2);
    EXPECT_EQ(after[lane].minima[0][0], states[lane].minima[0][0]) << "in values";
  }
}

TEST(AttendState, FinishAddsLanesAndMinima) {
  Random random(5);
  const std::vector<State> states = random_states(random, true, 3);
  std::vector<State> after = states;
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    after[static_cast<std::size_t>(threads.lane())].finish(threads);
  });
  double sums[8] = {};
  double minima[bands][8] = {};
  for (int lane = 0; lane < 32; ++lane)
    for (int column = 0; column < 2; ++column) {
      const State& state = states[static_cast<std::size_t>(lane)];
      sums[column_of(lane, column)] += static_cast<double>(state.sum[column]);
      for (int band = 0; band < bands; ++band)
        minima[band][column_of(lane, column)] += static_cast<double>(state.minima[band][column]);
    }
  for (int lane = 0; lane < 32; ++lane) {
    State value_units = states[static_cast<std::size_t>(lane)];
    value_units.use_value_units();
    const State& state = after[static_cast<std::size_t>(lane)];
    EXPECT_FALSE(state.code_units);
    for (int column = 0; column < 2; ++column)
      EXPECT_NEAR(static_cast<double>(state.sum[column]), sums[column_of(lane, column)], 1e-5);
    for (int tile = 0; tile < State::tiles; ++tile)
      for (int e = 0; e < 4; ++e) {
        const int channel = tile * tile_extent + outer_of(lane, e);
        const double own = static_cast<double>(value_units.output[tile][e]);
        const double expected = own + minima[channel * bands / value_dim][column_of(lane, e)];
        EXPECT_NEAR(static_cast<double>(state.output[tile][e]), expected,
                    1e-6 * (std::abs(own) + 10));
      }
  }
}

}  // namespace
}  // namespace kvtilt::cuda
