// SPDX-License-Identifier: MIT
/// The multiple-choice knapsack: picks one option for every item so that the total loss is least
/// within a byte budget. Exact.
///
/// Losses are rounded to integers on a grid of 2^-52 of the largest loss (coarser beyond 1,024
/// items), so that sums are exact: equal losses tie however they are added up, and scaling all
/// losses changes nothing. Ties in loss go to fewer bytes; then, at the first item where two
/// answers differ, to the one with more bytes there; then to the earlier option.
///
/// Method: drop dominated options; take the price of a byte from the linear relaxation (Sinha and
/// Zoltners, Operations Research 27, 1979) and drop the options that no optimum can contain at that
/// price; decide between the rest by dynamic programming over byte sums, in units of their greatest
/// common divisor.
#pragma once

#include <kvtilt/core/status.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

namespace kvtilt {

struct KnapsackOption {
  std::size_t bytes;
  double loss;  ///< finite, not negative
};

using KnapsackItem = std::vector<KnapsackOption>;

namespace detail {

/// An option that may be in an optimum, with its loss rounded to the integer grid.
struct GridOption {
  std::size_t bytes;
  std::int64_t loss;  ///< on the grid
  std::size_t index;  ///< in the caller's item
};

/// Bytes ascending, losses descending.
using GridItem = std::vector<GridOption>;

/// The power of two that makes losses integers whose sum over `items` items stays below 2^62.
inline int grid_exponent(const std::vector<KnapsackItem>& items) {
  double largest = 0;
  for (const KnapsackItem& item : items)
    for (const KnapsackOption& option : item) largest = std::max(largest, option.loss);
  if (largest == 0) return 0;
  const int sum_bits = static_cast<int>(std::bit_width(items.size()));
  return 62 - sum_bits - (std::ilogb(largest) + 1);
}

/// The options of an item that are not dominated: no other has at most as many bytes and as much
/// loss.
inline GridItem undominated(const KnapsackItem& item, int exponent) {
  GridItem sorted;
  for (std::size_t i = 0; i < item.size(); ++i)
    sorted.push_back({item[i].bytes, std::llround(std::ldexp(item[i].loss, exponent)), i});
  std::stable_sort(sorted.begin(), sorted.end(), [](const GridOption& a, const GridOption& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.loss < b.loss;
  });
  GridItem kept;
  for (const GridOption& option : sorted)
    if (kept.empty() || option.loss < kept.back().loss) kept.push_back(option);
  return kept;
}

/// A step between neighbours on the lower convex hull of an item's options.
struct HullStep {
  double gain_per_byte;
  std::size_t item;
  std::size_t bytes;
  std::int64_t gain;
};

/// Appends the steps of an item's hull, from its smallest option to its largest.
inline void append_hull(const GridItem& options, std::size_t item, std::vector<HullStep>& steps) {
  std::vector<HullStep> hull;
  std::size_t from = 0;
  while (from + 1 < options.size()) {
    HullStep best{-1.0, item, 0, 0};
    std::size_t to = from + 1;
    for (std::size_t i = from + 1; i < options.size(); ++i) {
      const std::size_t bytes = options[i].bytes - options[from].bytes;
      const std::int64_t gain = options[from].loss - options[i].loss;
      const double rate = static_cast<double>(gain) / static_cast<double>(bytes);
      if (rate < best.gain_per_byte) continue;
      best = {rate, item, bytes, gain};
      to = i;
    }
    steps.push_back(best);
    from = to;
  }
}

/// Drops the options that no optimum can contain: their cost, loss + price * bytes with the price
/// of a byte from the linear relaxation, exceeds the item's least cost by more than the gap between
/// the relaxation and a greedy answer. `budget` must be at least the sum of the smallest options.
inline void drop_hopeless(std::vector<GridItem>& items, std::size_t budget) {
  std::vector<HullStep> steps;
  std::size_t bytes = 0;
  std::int64_t feasible = 0;  // loss of a greedy answer within the budget
  for (std::size_t item = 0; item < items.size(); ++item) {
    append_hull(items[item], item, steps);
    bytes += items[item].front().bytes;
    feasible += items[item].front().loss;
  }
  std::stable_sort(steps.begin(), steps.end(), [](const HullStep& a, const HullStep& b) {
    return a.gain_per_byte > b.gain_per_byte;
  });
  double price = 0;
  std::vector<bool> stopped(items.size());
  for (const HullStep& step : steps) {
    if (stopped[step.item]) continue;
    if (bytes + step.bytes > budget) {
      if (price == 0) price = step.gain_per_byte;
      stopped[step.item] = true;
      continue;
    }
    bytes += step.bytes;
    feasible -= step.gain;
  }

  const auto cost = [price](const GridOption& option) {
    return static_cast<double>(option.loss) + price * static_cast<double>(option.bytes);
  };
  double bound = -price * static_cast<double>(budget);  // no answer has a smaller loss
  std::vector<double> least(items.size());
  for (std::size_t item = 0; item < items.size(); ++item) {
    least[item] = cost(items[item].front());
    for (const GridOption& option : items[item]) least[item] = std::min(least[item], cost(option));
    bound += least[item];
  }
  // A margin above the rounding errors of all these sums of doubles.
  const double magnitude = static_cast<double>(feasible) + price * static_cast<double>(budget);
  const double gap = static_cast<double>(feasible) - bound + 1e-9 * magnitude;
  for (std::size_t item = 0; item < items.size(); ++item)
    std::erase_if(items[item],
                  [&](const GridOption& option) { return cost(option) - least[item] > gap; });
}

/// Value of a partial answer, ordered by loss, then by size in units.
struct KnapsackValue {
  std::int64_t loss;
  std::size_t units;
  [[nodiscard]] bool better_than(const KnapsackValue& other) const {
    return loss != other.loss ? loss < other.loss : units < other.units;
  }
};

/// Dynamic programming from the last item to the first. A unit is the greatest common divisor of
/// the byte differences between options. best(item, r) is the least value of the items from `item`
/// on if they may use r units in total beyond their smallest options.
class KnapsackTable {
 public:
  /// `slack` is the part of the budget, in bytes, beyond the sum of the smallest options.
  KnapsackTable(const std::vector<GridItem>& items, std::size_t slack) : items_(items) {
    for (const GridItem& item : items)
      for (const GridOption& option : item)
        unit_ = std::gcd(unit_, option.bytes - item.front().bytes);
    if (unit_ == 0) unit_ = 1;
    std::size_t total = 0;
    for (std::size_t item = 0; item < items.size(); ++item) total += most(item);
    slack_ = std::min(slack / unit_, total);
    rows_.resize(items.size() + 1);
    std::size_t before = 0;
    for (std::size_t item = 0; item <= items.size(); ++item) {
      rows_[item] = {before < slack_ ? slack_ - before : 0, std::min(slack_, total - before),
                     cells_};
      cells_ += rows_[item].last - rows_[item].first + 1;
      if (item < items.size()) before += most(item);
    }
  }

  [[nodiscard]] std::size_t cells() const { return cells_; }

  /// For each item the index of the chosen option. Fails with OutOfMemory.
  Result<std::vector<std::size_t>> solve() {
    const std::unique_ptr<Choice[]> choices(new (std::nothrow) Choice[cells_]);
    const std::unique_ptr<KnapsackValue[]> values(new (std::nothrow)
                                                      KnapsackValue[2 * (slack_ + 1)]);
    if (choices == nullptr || values == nullptr)
      return Status::error(ErrorCode::OutOfMemory, "no memory for the %zu cells of an exact plan",
                           cells_);
    KnapsackValue* next = values.get();
    KnapsackValue* current = next + slack_ + 1;
    next[0] = {0, 0};
    for (std::size_t item = items_.size(); item-- > 0;) {
      fill(item, next, current, choices.get());
      std::swap(next, current);
    }
    std::vector<std::size_t> picked;
    std::size_t left = slack_;
    for (std::size_t item = 0; item < items_.size(); ++item) {
      left = std::min(left, rows_[item].last);
      picked.push_back(choices[rows_[item].cell + left - rows_[item].first]);
      left -= units(item, picked.back());
    }
    return picked;
  }

 private:
  using Choice = std::uint16_t;

  /// The cells of an item: r from `first`, the units that earlier items cannot use up, to `last`,
  /// the units that this item and later ones can use.
  struct Row {
    std::size_t first;
    std::size_t last;
    std::size_t cell;  ///< index of the first
  };

  [[nodiscard]] std::size_t units(std::size_t item, std::size_t option) const {
    return (items_[item][option].bytes - items_[item].front().bytes) / unit_;
  }
  [[nodiscard]] std::size_t most(std::size_t item) const {
    return units(item, items_[item].size() - 1);
  }

  void fill(std::size_t item, const KnapsackValue* next, KnapsackValue* current,
            Choice* choices) const {
    const Row& row = rows_[item];
    const Row& below = rows_[item + 1];
    for (std::size_t left = row.first; left <= row.last; ++left)
      current[left - row.first] = {INT64_MAX, 0};
    for (std::size_t option = items_[item].size(); option-- > 0;) {  // more bytes win ties
      const std::size_t used = units(item, option);
      const std::int64_t loss = items_[item][option].loss;
      for (std::size_t left = std::max(row.first, used); left <= row.last; ++left) {
        const KnapsackValue& rest = next[std::min(left - used, below.last) - below.first];
        const KnapsackValue value{loss + rest.loss, used + rest.units};
        KnapsackValue& best = current[left - row.first];
        if (!value.better_than(best)) continue;
        best = value;
        choices[row.cell + left - row.first] = static_cast<Choice>(option);
      }
    }
  }

  const std::vector<GridItem>& items_;
  std::size_t unit_ = 0;
  std::size_t slack_ = 0;
  std::size_t cells_ = 0;
  std::vector<Row> rows_;
};

}  // namespace detail

/// Cells of the largest table that solve_knapsack allocates; at 2 bytes each, 1 GiB.
inline constexpr std::size_t most_knapsack_cells = std::size_t{1} << 29;

/// Solves the knapsack: for each item the index of its option in the best answer.
///
/// Fails    InvalidArgument if an item has no option (or more than 65535) or the budget is below
///          the sum of the smallest options, Unsupported if the table would exceed 1 GiB,
///          OutOfMemory
/// Cost     after dropping what no optimum can contain: for each item that still has a choice, one
///          2-byte cell per byte sum that can still matter, in units of their greatest common
///          divisor (64 for pages), and about 1 ns per cell and option. At most items * (budget -
///          smallest answer) / 64 cells, in practice a small part of that
inline Result<std::vector<std::size_t>> solve_knapsack(const std::vector<KnapsackItem>& items,
                                                       std::size_t budget) {
  const int exponent = detail::grid_exponent(items);
  std::vector<detail::GridItem> grid;
  std::size_t smallest = 0;
  for (const KnapsackItem& item : items) {
    if (item.empty() || item.size() > UINT16_MAX)
      return Status::error(ErrorCode::InvalidArgument,
                           "item %zu has %zu options, must have 1 to 65535", grid.size(),
                           item.size());
    grid.push_back(detail::undominated(item, exponent));
    smallest += grid.back().front().bytes;
  }
  if (smallest > budget)
    return Status::error(ErrorCode::InvalidArgument,
                         "a budget of %zu bytes is too small: the smallest that works is %zu",
                         budget, smallest);
  detail::drop_hopeless(grid, budget);
  smallest = 0;  // of the remaining options, which still contain every optimum
  for (const detail::GridItem& item : grid) smallest += item.front().bytes;
  detail::KnapsackTable table(grid, budget - smallest);
  if (table.cells() > most_knapsack_cells)
    return Status::error(ErrorCode::Unsupported,
                         "an exact answer for %zu items needs a table of %zu cells, the limit is "
                         "%zu: give several items one choice",
                         items.size(), table.cells(), most_knapsack_cells);
  Result<std::vector<std::size_t>> picked = table.solve();
  if (picked)
    for (std::size_t item = 0; item < items.size(); ++item)
      (*picked)[item] = grid[item][(*picked)[item]].index;
  return picked;
}

}  // namespace kvtilt
