// SPDX-License-Identifier: MIT
/// Probes how the tensor cores round sums and whether they keep subnormal fp16 operands.
#pragma once

#include "mma.cuh"
#include "probe_support.cuh"

#include <cuda_fp16.h>

#include <cmath>
#include <random>

namespace kvtilt::bench {

/// The operands of one mma as bits of fp16 numbers: a[row][k] and b[k][column].
struct MmaTile {
  std::uint16_t a[16][16];
  std::uint16_t b[16][8];
};

struct MmaResult {
  float sums[16][8];
};

/// Each warp computes one chain: it adds `links` tiles one after another to `start`.
__global__ void multiply_chains(const MmaTile* tiles, int links, float start, MmaResult* results) {
  const int row = threadIdx.x / 4;
  const int pair = 2 * (threadIdx.x % 4);
  float sums[4] = {start, start, start, start};
  for (int link = 0; link < links; ++link) {
    const MmaTile& tile = tiles[blockIdx.x * links + link];
    const auto a_pair = [&](int r, int k) { return tile.a[r][k] | tile.a[r][k + 1] << 16; };
    const auto b_pair = [&](int k) { return tile.b[k][row] | tile.b[k + 1][row] << 16; };
    const std::uint32_t a[4] = {
        static_cast<std::uint32_t>(a_pair(row, pair)),
        static_cast<std::uint32_t>(a_pair(row + 8, pair)),
        static_cast<std::uint32_t>(a_pair(row, pair + 8)),
        static_cast<std::uint32_t>(a_pair(row + 8, pair + 8)),
    };
    const std::uint32_t b[2] = {static_cast<std::uint32_t>(b_pair(pair)),
                                static_cast<std::uint32_t>(b_pair(pair + 8))};
    mma(sums, a, b);
  }
  for (int i = 0; i < 4; ++i) results[blockIdx.x].sums[row + i / 2 * 8][pair + i % 2] = sums[i];
}

/// Computed from the bits: no conversion instruction, which might flush subnormals, is used.
inline double value_of_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude =
      exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

class MmaNumerics {
 public:
  explicit MmaNumerics(Report& report) : report_(report) {}

  void run() {
    single_codes();
    sums_of_codes();
    guard_bits();
    for (int links : {1, 8, 64}) chains(links);
  }

 private:
  static constexpr std::uint16_t one = 0x3c00;

  /// Every code c * 2^-24 alone in its row, so that the one product is exact: a result of zero
  /// means that the operand was flushed.
  void single_codes() {
    exact_products("subnormal.a_times_one", [](int) { return one; });
    exact_products("subnormal.a_times_normal", [this](int) { return normal_half(true); });
    exact_products("subnormal.a_times_subnormal",
                   [this](int) { return static_cast<std::uint16_t>(1 + random_() % 1023); });
  }

  template <class MakeB>
  void exact_products(const std::string& name, MakeB make_b) {
    std::vector<MmaTile> tiles(1024 / 16 * 16);
    for (std::size_t t = 0; t < tiles.size(); ++t) {
      tiles[t] = {};
      for (int row = 0; row < 16; ++row) {
        const int k = (row + t) % 16;
        tiles[t].a[row][k] = static_cast<std::uint16_t>(t / 16 * 16 + row);
      }
      for (auto& b_row : tiles[t].b)
        for (auto& half : b_row) half = make_b(0);
    }
    int wrong = 0, flushed = 0;
    for_each_result(tiles, 1, 0, [&](double found, double exact, double) {
      wrong += found != exact;
      flushed += found == 0 && exact != 0;
    });
    if (wrong == 0)
      report_.add_text(name, "ok, every product exact");
    else
      report_.fail(name, std::to_string(wrong) + " products are wrong, of them flushed " +
                             std::to_string(flushed));
  }

  /// Codes as an AND leaves them in place in a word, times positive fp16 numbers, so that the
  /// relative error contains no cancellation.
  void sums_of_codes() {
    struct Field {
      int bits, shift;
    };
    for (const Field field :
         {Field{4, 0}, {4, 4}, {2, 0}, {2, 2}, {2, 4}, {2, 6}, {8, 0}, {10, 0}}) {
      const std::string name =
          "subnormal.sum." + std::to_string(field.bits) + "bit_at" + std::to_string(field.shift);
      const auto code = [&] {
        return static_cast<std::uint16_t>((random_() & ((1u << field.bits) - 1)) << field.shift);
      };
      add_worst(name + "_by_normal", fill(1024, code, [&] { return normal_half(true); }));
      add_worst(name + "_by_subnormal",
                fill(1024, code, [&] { return static_cast<std::uint16_t>(1 + random_() % 1023); }));
    }
    add_worst("subnormal.sum.normal_by_subnormal",
              fill(
                  1024, [&] { return normal_half(true); },
                  [&] { return static_cast<std::uint16_t>(1 + random_() % 1023); }));
  }

  void add_worst(const std::string& name, const std::vector<MmaTile>& tiles) {
    double worst = 0;
    for_each_result(tiles, 1, 0, [&](double found, double exact, double) {
      if (exact != 0)
        worst = std::max(worst, std::abs(found - exact) / std::abs(exact));
      else if (found != 0)
        worst = INFINITY;
    });
    report_.add(name, worst, "worst_relative_error");
    if (worst < 1e-4)  // sums are truncated; a flushed operand is off by about 1
      report_.add_text(name + "_verdict", "subnormals ok");
    else
      report_.fail(name + "_verdict", "flushed or wrong");
  }

  /// Counts the bits kept below the last bit of the largest addend: 1 plus 2^bits products of
  /// 2^-(23 + bits) makes 1 + 2^-23, unless each product is truncated before the addition.
  void guard_bits() {
    int kept = -1;
    for (int bits = 0; bits <= 4; ++bits) {
      std::vector<MmaTile> tiles(1, MmaTile{});
      for (auto& row : tiles[0].a)
        for (int k = 0; k < 1 << bits; ++k) row[k] = 0x0400;  // 2^-14
      for (auto& row : tiles[0].b)
        for (auto& half : row) half = static_cast<std::uint16_t>((15 - 9 - bits) << 10);
      bool is_kept = true;
      for_each_result(tiles, 1, 1.0f,
                      [&](double found, double exact, double) { is_kept &= found == exact; });
      if (is_kept && kept == bits - 1) kept = bits;
    }
    report_.add("mma.guard_bits", kept, "bits");

    // 1 + 1.5 * 2^-24 lies three quarters of the way to the next float. One product or two.
    std::vector<MmaTile> tiles(1, MmaTile{});
    for (auto& row : tiles[0].a) row[0] = 0x0600;  // 1.5 * 2^-14
    for (auto& row : tiles[0].b)
      for (auto& half : row) half = (15 - 10) << 10;
    double sum = 0;
    for_each_result(tiles, 1, 1.0f, [&](double found, double, double) { sum = found; });
    report_.add_text("mma.rounding", sum == 1 ? "truncates" : "rounds to nearest");
  }

  /// 4-bit codes as subnormals times fp16 numbers: all positive, of both signs, and of both signs
  /// with a total near zero.
  void chains(int links) {
    const std::string name = "mma.chain" + std::to_string(links);
    const auto code = [&] { return static_cast<std::uint16_t>(random_() & 15); };
    const int count = 256 * links;
    add_errors(name + ".positive", fill(count, code, [&] { return normal_half(true); }), links);
    add_errors(name + ".signed", fill(count, code, [&] { return normal_half(false); }), links);
    auto tiles = fill(count, code, [&] { return normal_half(false); });
    for (MmaTile& tile : tiles)
      for (int k = 0; k < 16; k += 2) {
        for (auto& row : tile.a) row[k + 1] = row[k];
        // The odd row cancels the even one except for its last bit.
        for (int column = 0; column < 8; ++column)
          tile.b[k + 1][column] = tile.b[k][column] ^ 0x8001;
      }
    add_errors(name + ".cancelling", tiles, links);
  }

  /// Reports errors in units of 2^-24 of the sum of magnitudes, which is what one float rounding
  /// may lose; the mean error shows truncation as a bias.
  void add_errors(const std::string& name, const std::vector<MmaTile>& tiles, int links) {
    double worst = 0, squares = 0, bias = 0, worst_relative = 0;
    int count = 0;
    for_each_result(tiles, links, 0, [&](double found, double exact, double magnitudes) {
      if (magnitudes == 0) return;
      const double error = (found - exact) / magnitudes * 0x1p24;
      worst = std::max(worst, std::abs(error));
      squares += error * error;
      bias += (exact < 0 ? -error : error);
      if (exact != 0) worst_relative = std::max(worst_relative, std::abs((found - exact) / exact));
      ++count;
    });
    report_.add(name + ".worst", worst, "2^-24_of_magnitudes");
    report_.add(name + ".rms", std::sqrt(squares / count), "2^-24_of_magnitudes");
    report_.add(name + ".bias_away_from_zero", bias / count, "2^-24_of_magnitudes");
    report_.add(name + ".worst_relative", worst_relative, "relative_error");
  }

  template <class MakeA, class MakeB>
  static std::vector<MmaTile> fill(int count, MakeA make_a, MakeB make_b) {
    std::vector<MmaTile> tiles(count);
    for (MmaTile& tile : tiles) {
      for (auto& row : tile.a)
        for (auto& half : row) half = make_a();
      for (auto& row : tile.b)
        for (auto& half : row) half = make_b();
    }
    return tiles;
  }

  /// Calls visit(found, exact, sum of the addends' magnitudes) for each output of each chain.
  /// Products are exact in double, and their sums are nearly so.
  template <class Visit>
  static void for_each_result(const std::vector<MmaTile>& tiles, int links, float start,
                              Visit visit) {
    const int count = static_cast<int>(tiles.size()) / links;
    const DeviceArray<MmaTile> operands(tiles);
    const DeviceArray<MmaResult> outputs(count);
    multiply_chains<<<count, 32>>>(operands.data(), links, start, outputs.data());
    finish();
    const std::vector<MmaResult> results = outputs.read();
    for (int chain = 0; chain < count; ++chain)
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          double exact = start, magnitudes = std::abs(start);
          for (int link = 0; link < links; ++link)
            for (int k = 0; k < 16; ++k) {
              const MmaTile& tile = tiles[chain * links + link];
              const double product = values_()[tile.a[row][k]] * values_()[tile.b[k][column]];
              exact += product;
              magnitudes += std::abs(product);
            }
          visit(results[chain].sums[row][column], exact, magnitudes);
        }
  }

  /// A table of all fp16 values, because ldexp is slow.
  static const std::vector<double>& values_() {
    static const std::vector<double> values = [] {
      std::vector<double> all(65536);
      for (int bits = 0; bits < 65536; ++bits) all[bits] = value_of_half(bits);
      return all;
    }();
    return values;
  }

  /// A sample of the normal distribution as an fp16 number that is not subnormal.
  std::uint16_t normal_half(bool is_positive) {
    for (;;) {
      const float draw = gauss_(random_);
      const std::uint16_t bits =
          __half_as_ushort(__float2half(is_positive ? std::abs(draw) : draw));
      if (bits & 0x7c00) return bits;
    }
  }

  Report& report_;
  std::mt19937 random_{11};
  std::normal_distribution<float> gauss_;
};

}  // namespace kvtilt::bench
