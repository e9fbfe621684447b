// SPDX-License-Identifier: MIT
// Contractions (sums of coefficients times decoded elements) by every kernel table, against sums in
// double over unpack_value(). Everything that they must not read holds NaN patterns.
#include <kvtilt/cpu/contract.hpp>
#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/page/unpack.hpp>
#include <kvtilt/quant/presets.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/codes.hpp"
#include "support/fp16_oracle.hpp"
#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

namespace kvtilt {
namespace {

using cpu::Range;
using test::Block;
using test::Extents;

const float poison = std::bit_cast<float>(0x7fc12345u);
constexpr float guard = -12345.5f;
constexpr std::byte guard_byte{0xa5};

int up_to_16(int x) { return (x + 15) / 16 * 16; }
int up_to_32(int x) { return (x + 31) / 32 * 32; }

/// Each element's value, and the magnitude of a kernel's terms for it: |minimum| + |scale * code|.
struct Decoded {
  std::vector<double> value;
  std::vector<double> magnitude;

  Decoded(const TensorLayout& tensor, const std::byte* block) {
    for (int outer = 0; outer < tensor.matrix.outer; ++outer)
      for (int inner = 0; inner < tensor.matrix.inner; ++inner) {
        const double x = static_cast<double>(unpack_value(tensor, block, outer, inner));
        double minimum = 0;
        if (tensor.format.quantized()) {
          const int along = tensor.group_along_outer ? outer : inner;
          const int entry = tensor.group_along_outer ? inner : outer;
          minimum = static_cast<double>(
              to_float(tensor.scales(block, along / tensor.format.group)[tensor.pitch() + entry]));
        }
        value.push_back(x);
        magnitude.push_back(std::fabs(minimum) + std::fabs(x - minimum));
      }
  }
};

/// Writes NaN and infinity to all data of tokens outside `live`, whose codes become all ones.
void poison_tokens(test::Random& random, const TensorLayout& tensor, bool keys, Range live,
                   std::byte* block) {
  const std::uint16_t patterns[] = {0x7e00, 0xfe00, 0x7c00, 0xfc00, 0x7fff, 0xffff, 0x7c01};
  const auto bad = [&] { return F16{patterns[random.below(7)]}; };
  const int tokens = keys ? tensor.matrix.outer : tensor.matrix.inner;
  const int channels = keys ? tensor.matrix.inner : tensor.matrix.outer;
  for (int token = 0; token < tokens; ++token) {
    if (token >= live.first && token < live.last) continue;
    for (int channel = 0; channel < channels; ++channel) {
      const int outer = keys ? token : channel;
      const int inner = keys ? channel : token;
      if (tensor.format.quantized())
        test::write_code(reinterpret_cast<std::uint8_t*>(block + tensor.codes), tensor.matrix,
                         tensor.format.bits, outer, inner, max_code(tensor.format.bits));
      else
        test::halves(block, tensor)[half_position(tensor.matrix, outer, inner)] = bad();
    }
    if (tensor.format.granularity == Granularity::PerToken)
      for (int band = 0; band < tensor.bands(); ++band) {
        F16* scales = tensor.scales(block, band);
        scales[token] = bad();
        scales[tensor.pitch() + token] = bad();
      }
  }
}

/// A range within 0 to extent - 1: often the whole, sometimes empty.
Range random_range(test::Random& random, int extent) {
  if (random.chance(3)) return {0, extent};
  const int first = random.below(extent);
  return {first, random.chance(12) ? first : random.between(first + 1, extent)};
}

/// Coefficients and results between guards.
struct Operands {
  int rows;
  std::ptrdiff_t coefficient_stride;
  std::ptrdiff_t result_stride;
  std::vector<float> coefficients;
  std::vector<float> start;
  std::vector<float> result;
  std::vector<std::byte> scratch;

  Operands(test::Random& random, CodeMatrix matrix, int extent, Range inner, Role role)
      : rows(random.between(1, 9)),
        coefficient_stride(up_to_32(extent) + 4),
        result_stride(up_to_16(matrix.outer) + 4),
        coefficients(static_cast<std::size_t>(rows * coefficient_stride), poison),
        start(static_cast<std::size_t>(rows * result_stride), guard),
        scratch(cpu::contract_scratch_bytes(
                    role == Role::Keys ? extent : std::max(extent, cpu::joined_slots)) +
                    128,
                guard_byte) {
    for (int row = 0; row < rows; ++row) {
      // Outliers make integer weights need two bytes. Elements around `inner` hold any finite
      // number.
      for (int i = inner.first / 32 * 32; i < up_to_32(inner.last); ++i) {
        const double x = random.sampled_normal() * (random.chance(40) ? 20.0 : 1.0);
        coefficients[static_cast<std::size_t>(row * coefficient_stride + i)] =
            static_cast<float>(role == Role::Values ? std::fabs(x) : x);
      }
      for (int o = 0; o < up_to_16(matrix.outer); ++o)
        start[static_cast<std::size_t>(row * result_stride + o)] =
            static_cast<float>(random.sampled_normal());
    }
    result = start;
  }

  [[nodiscard]] std::byte* aligned_scratch() {
    const auto address = reinterpret_cast<std::uintptr_t>(scratch.data());
    return scratch.data() + (round_up(address, 64) - address);
  }

  [[nodiscard]] bool guards_are_whole(CodeMatrix matrix) const {
    for (int row = 0; row < rows; ++row)
      for (std::ptrdiff_t o = up_to_16(matrix.outer); o < result_stride; ++o)
        if (result[static_cast<std::size_t>(row * result_stride + o)] != guard) return false;
    return std::all_of(scratch.end() - 64, scratch.end(),
                       [](std::byte x) { return x == guard_byte; });
  }
};

/// The unpoisoned blocks of one contraction, decoded.
struct CleanPages {
  const TensorLayout* tensor;
  std::vector<const std::byte*> blocks;
  std::vector<Decoded> decoded;

  void add(const Block& block) {
    blocks.push_back(block.data());
    decoded.emplace_back(*tensor, block.data());
  }
  [[nodiscard]] int extent() const {
    return static_cast<int>(blocks.size()) * tensor->matrix.inner;
  }
  [[nodiscard]] const Decoded& of(int inner) const {
    return decoded[static_cast<std::size_t>(inner / tensor->matrix.inner)];
  }
  [[nodiscard]] std::size_t element(int outer, int inner) const {
    return static_cast<std::size_t>(outer * tensor->matrix.inner + inner % tensor->matrix.inner);
  }
  /// Scales of the band (a row of groups) that holds an element.
  [[nodiscard]] const F16* scales(int outer, int inner) const {
    const int along = tensor->group_along_outer ? outer : inner % tensor->matrix.inner;
    return tensor->scales(blocks[static_cast<std::size_t>(inner / tensor->matrix.inner)],
                          along / tensor->format.group);
  }
};

/// The most that rounding a row's weights to integers may change a sum, by band: per element half a
/// step (keys) or a whole one (values) times half the range of the codes, whose mean is subtracted.
double integer_tolerance(const CleanPages& pages, Role role, const float* row, Range inner,
                         int outer) {
  const TensorLayout& tensor = *pages.tensor;
  const int n = max_code(tensor.format.bits);
  double tolerance = 0;
  const int group = tensor.group_along_outer ? pages.extent() : tensor.format.group;
  const double error = role == Role::Keys ? 0.5001 : 1.0;  // in steps
  int extent = group;                                      // number of weights that share a step
  if (tensor.group_along_outer && role == Role::Values) extent = std::max(group, cpu::joined_slots);
  for (int first = 0; first < inner.last; first += group) {
    double largest = 0;
    double square = 0;
    int count = 0;
    for (int i = std::max(first, inner.first); i < std::min(first + group, inner.last); ++i) {
      const double scale =
          tensor.group_along_outer
              ? static_cast<double>(to_float(pages.scales(outer, i)[i % tensor.matrix.inner]))
              : 1.0;
      const double weight = static_cast<double>(row[i]) * scale;
      largest = std::max(largest, std::fabs(weight));
      square += weight * weight;
      ++count;
    }
    if (count == 0) continue;
    const double refined = n > 3 ? 0.6 * std::sqrt(square / extent) / n : largest;
    const double step = std::min(largest / (role == Role::Keys ? 127 : 255), refined * 1.05);
    const double lane = tensor.group_along_outer
                            ? 1.0
                            : static_cast<double>(to_float(pages.scales(outer, first)[outer]));
    tolerance += error * step * 0.5 * n * count * lane;
  }
  return tolerance;
}

/// The sums in double, with the error allowed to any instruction set.
struct ExpectedSums {
  struct Sum {
    double value;
    double rounding;  ///< allowed to float additions
    double weights;   ///< allowed to integer weights; 0 without codes
  };
  std::vector<Sum> sums;  // [row][element of the outer range]

  ExpectedSums(const Operands& operands, const CleanPages& pages, Role role, Range outer,
               Range inner) {
    const bool has_codes = pages.tensor->format.quantized();
    for (int row = 0; row < operands.rows; ++row)
      for (int o = outer.first; o < outer.last; ++o) {
        const float* coefficients =
            &operands.coefficients[static_cast<std::size_t>(row * operands.coefficient_stride)];
        double sum = 0;
        if (role == Role::Values)
          sum = static_cast<double>(
              operands.start[static_cast<std::size_t>(row * operands.result_stride + o)]);
        double magnitude = std::fabs(sum);
        for (int i = inner.first; i < inner.last; ++i) {
          const double c = static_cast<double>(coefficients[i]);
          sum += c * pages.of(i).value[pages.element(o, i)];
          magnitude += std::fabs(c) * pages.of(i).magnitude[pages.element(o, i)];
        }
        sums.push_back({sum, 0x1p-24 * (8 + inner.last - inner.first) * magnitude,
                        has_codes ? integer_tolerance(pages, role, coefficients, inner, o) : 0.0});
      }
  }

  void expect(const Operands& operands, Range outer, cpu::DotType type,
              const std::string& what) const {
    std::size_t next = 0;
    for (int row = 0; row < operands.rows; ++row)
      for (int o = outer.first; o < outer.last; ++o) {
        const float got =
            operands.result[static_cast<std::size_t>(row * operands.result_stride + o)];
        const Sum& sum = sums[next++];
        const double allowed =
            type == cpu::DotType::Float ? sum.rounding : 2 * sum.rounding + sum.weights;
        ASSERT_TRUE(test::is_finite(got)) << what << ", row " << row << ", outer " << o;
        ASSERT_LE(std::fabs(static_cast<double>(got) - sum.value), allowed)
            << got << " is not " << sum.value << ": " << what << ", row " << row << " of "
            << operands.rows << ", outer " << o << " of " << outer.first << " to " << outer.last;
      }
  }
};

/// The part of a range that lies in page `index`, relative to the page's start.
Range part_of(Range inner, int index, int extent) {
  return {std::clamp(inner.first - index * extent, 0, extent),
          std::clamp(inner.last - index * extent, 0, extent)};
}

void check_pages(test::Random& random, const CleanPages& pages, Role role, std::size_t bytes,
                 const std::string& what) {
  const TensorLayout& tensor = *pages.tensor;
  const bool keys = role == Role::Keys;
  const Range outer = random_range(random, tensor.matrix.outer);
  Range inner = random_range(random, pages.extent());
  if (keys && inner.first == inner.last) inner = {0, tensor.matrix.inner};
  std::deque<Block> poisoned;
  std::vector<cpu::PageBlock> blocks;
  for (std::size_t i = 0; i < pages.blocks.size(); ++i) {
    Block& block = poisoned.emplace_back(bytes);
    std::copy_n(pages.blocks[i], bytes, block.data());
    const Range seen = part_of(inner, static_cast<int>(i), tensor.matrix.inner);
    poison_tokens(random, tensor, keys, keys ? outer : seen, block.data());
    blocks.push_back({block.data(), random.between(-100000, 100000), random.between(0, 1 << 20)});
  }
  const Operands operands(random, tensor.matrix, pages.extent(), inner, role);
  const ExpectedSums expected(operands, pages, role, outer, inner);
  for (const test::KernelTable& table : test::kernel_tables())
    for (const cpu::DotType type : {cpu::DotType::Float, cpu::DotType::Integer}) {
      const cpu::Kernels& kernels = *table.kernels;
      if (type == cpu::DotType::Integer &&
          kernels.integer_dot[cpu::width_slot(tensor.format.bits)] == nullptr)
        continue;
      Operands run = operands;
      Operands other = operands;
      const auto contraction = [&](Operands& on) {
        return cpu::Contraction{.role = role,
                                .tensor = &tensor,
                                .pages = blocks.data(),
                                .outer = outer,
                                .inner = inner,
                                .coefficients = {on.coefficients.data(), on.coefficient_stride},
                                .rows = on.rows,
                                .result = {on.result.data(), on.result_stride},
                                .scratch = on.aligned_scratch()};
      };
      const std::string where =
          table.name + (type == cpu::DotType::Float ? ", float, " : ", integer, ") + what +
          ", inner " + std::to_string(inner.first) + " to " + std::to_string(inner.last) + " of " +
          std::to_string(pages.blocks.size()) + " pages";
      cpu::PendingContraction work;
      kernels.begin(work, contraction(run), type);
      cpu::PendingContraction between;
      kernels.begin(between, contraction(other), type);
      kernels.finish(between);
      kernels.finish(work);
      ASSERT_EQ(
          std::memcmp(run.result.data(), other.result.data(), run.result.size() * sizeof(float)), 0)
          << where;
      expected.expect(run, outer, type, where);
      if (testing::Test::HasFatalFailure()) return;
      ASSERT_TRUE(run.guards_are_whole(tensor.matrix)) << where;
    }
}

class ContractAgreement : public testing::TestWithParam<int> {};

TEST_P(ContractAgreement, SumsWhatUnpackReturns) {
  test::Random random(static_cast<std::uint64_t>(GetParam()));
  for (const Extents extents : test::all_extents())
    for (const Format& format : test::formats_of(GetParam(), extents)) {
      const HeadLayout half = test::layout_of(Format{}, extents);
      const HeadLayout packed = test::layout_of(format, extents);
      std::deque<Block> blocks;
      for (int i = 0; i < 3; ++i) {
        Block source(half.bytes());
        Block& block = blocks.emplace_back(packed.bytes());
        test::fill_half_tensor(random, half.key, packed.key, source.data(), true);
        test::fill_half_tensor(random, half.value, packed.value, source.data(), true);
        test::pack_by_specification(half.key, source.data(), packed.key, block.data());
        test::pack_by_specification(half.value, source.data(), packed.value, block.data());
      }
      const std::string what = test::to_string(format, extents);
      CleanPages keys{&packed.key, {}, {}};
      keys.add(blocks.front());
      check_pages(random, keys, Role::Keys, packed.bytes(), "keys, " + what);
      if (HasFatalFailure()) return;
      for (int round = 0; round < 2; ++round) {
        // Values of one page first, then of as many as are joined.
        CleanPages values{&packed.value, {}, {}};
        const int joined = format.quantized() ? cpu::joined_slots / extents.tokens : 1;
        for (int page = round == 0 ? 1 : random.between(1, joined); page > 0; --page)
          values.add(blocks[static_cast<std::size_t>(page % 3)]);
        check_pages(random, values, Role::Values, packed.bytes(), "values, " + what);
        if (HasFatalFailure()) return;
      }
    }
}

// Pages of 32 tokens are joined to the slots of one of 128: their weights must be as fine.
TEST(ContractRounding, OfValuesIsThatOfAllSlotsThatAreJoined) {
  const auto rounding = [](int page_tokens) {
    const Recipe recipe = resolve_recipe(presets::k4v4, {1, 64, 64}, page_tokens).value();
    const HeadLayout head = head_layout(recipe, 64, 64, page_tokens, 0);
    cpu::Contraction values{};
    values.role = Role::Values;
    values.tensor = &head.value;
    return cpu::Rounding(values, cpu::DotType::Integer);
  };
  EXPECT_EQ(rounding(32).least_square, rounding(cpu::joined_slots).least_square);
  EXPECT_EQ(rounding(32).checked, rounding(cpu::joined_slots).checked);
}

INSTANTIATE_TEST_SUITE_P(Widths, ContractAgreement, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16));

}  // namespace
}  // namespace kvtilt
