// SPDX-License-Identifier: MIT
/// The multiple-choice knapsack: picks one option for every item so that the total loss is least
/// within a byte budget. Exact.
///
/// Losses are rounded to integers on a grid of 2^-52 (coarser beyond 511 items) of the largest loss
/// that an optimum can contain, so that sums are exact: equal losses tie however they are added up,
/// scaling all losses changes nothing, and a huge loss forbids an option without any other effect.
/// Ties in loss go to fewer bytes; then, at the first item where two answers differ, to the one with
/// more bytes there; then to the earlier option.
///
/// Method: drop dominated options; take the price of a byte from the linear relaxation (Sinha and
/// Zoltners, Operations Research 27, 1979) and drop the options that no optimum can contain at that
/// price; decide between the rest by dynamic programming over byte sums, in units of their greatest
/// common divisor.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/plan/losses.hpp>

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

/// Checks the options of item number `index`, and adds the bytes of its largest to `largest`.
inline Status check_item(const KnapsackItem& item, std::size_t index, std::size_t& largest) {
  if (item.empty() || item.size() > UINT16_MAX)
    return Status::error(ErrorCode::InvalidArgument,
                         "item %zu has %zu options, must have 1 to 65535", index, item.size());
  std::size_t bytes = 0;
  for (const KnapsackOption& option : item) {
    if (!is_finite(option.loss) || option.loss < 0)
      return Status::error(ErrorCode::InvalidValue, "item %zu has the loss %g", index, option.loss);
    bytes = std::max(bytes, option.bytes);
  }
  if (bytes > SIZE_MAX - largest)
    return Status::error(ErrorCode::InvalidValue,
                         "with an option of %zu bytes of item %zu, the sum of all sizes overflows",
                         bytes, index);
  largest += bytes;
  return {};
}

/// Indices of an item's options that are not dominated: no other has at most as many bytes and as
/// much loss. Bytes ascending, losses descending.
inline std::vector<std::size_t> undominated(const KnapsackItem& item) {
  std::vector<std::size_t> sorted(item.size());
  std::iota(sorted.begin(), sorted.end(), std::size_t{0});
  std::stable_sort(sorted.begin(), sorted.end(), [&](std::size_t a, std::size_t b) {
    return item[a].bytes != item[b].bytes ? item[a].bytes < item[b].bytes
                                          : item[a].loss < item[b].loss;
  });
  std::vector<std::size_t> kept;
  for (const std::size_t i : sorted)
    if (kept.empty() || item[i].loss < item[kept.back()].loss) kept.push_back(i);
  return kept;
}

/// The items' options on the integer grid, without those that no optimum can contain because their
/// loss alone exceeds that of some answer: were they kept, a huge loss would coarsen the grid until
/// all others were equal.
///
/// fronts  undominated() of every item; the smallest options must fit the budget
inline std::vector<GridItem> on_grid(const std::vector<KnapsackItem>& items,
                                     const std::vector<std::vector<std::size_t>>& fronts,
                                     std::size_t budget) {
  // The least limit for which the smallest options of at most that loss fit the budget.
  std::vector<double> limits;
  for (std::size_t item = 0; item < items.size(); ++item)
    for (const std::size_t i : fronts[item]) limits.push_back(items[item][i].loss);
  std::sort(limits.begin(), limits.end());
  const auto fits = [&](double limit) {
    std::size_t left = budget;
    for (std::size_t item = 0; item < items.size(); ++item) {
      const auto smallest =
          std::partition_point(fronts[item].begin(), fronts[item].end(),
                               [&](std::size_t i) { return items[item][i].loss > limit; });
      if (smallest == fronts[item].end() || items[item][*smallest].bytes > left) return false;
      left -= items[item][*smallest].bytes;
    }
    return true;
  };
  const auto least = std::partition_point(limits.begin(), limits.end(),
                                          [&](double limit) { return !fits(limit); });

  // The answer within that limit loses at most limit * items. Dividing instead cannot overflow.
  const double count = static_cast<double>(items.size());
  const auto hopeless = [&](double loss) { return loss / count > *least; };
  double largest = 0;
  for (const double loss : limits)
    if (!hopeless(loss)) largest = std::max(largest, loss);
  // The power of two that makes losses integers whose sum over the items stays below 2^62.
  const int sum_bits = static_cast<int>(std::bit_width(items.size()));
  const int exponent = largest == 0 ? 0 : 62 - sum_bits - (std::ilogb(largest) + 1);
  std::vector<GridItem> grid(items.size());
  for (std::size_t item = 0; item < items.size(); ++item)
    for (const std::size_t i : fronts[item]) {
      const KnapsackOption& option = items[item][i];
      if (hopeless(option.loss)) continue;
      const std::int64_t loss = std::llround(std::ldexp(option.loss, exponent));
      if (grid[item].empty() || loss < grid[item].back().loss)
        grid[item].push_back({option.bytes, loss, i});
    }
  return grid;
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
///          the sum of the smallest options, InvalidValue for a loss that is not finite or
///          negative, or if the sizes of the largest options add up to more than a size_t holds,
///          Unsupported if the table would exceed 1 GiB, OutOfMemory
/// Cost     after dropping what no optimum can contain: for each item that still has a choice, one
///          2-byte cell per byte sum that can still matter, in units of their greatest common
///          divisor (64 for pages), and about 1 ns per cell and option. At most items * (budget -
///          smallest answer) / 64 cells, in practice a small part of that
inline Result<std::vector<std::size_t>> solve_knapsack(const std::vector<KnapsackItem>& items,
                                                       std::size_t budget) {
  std::vector<std::vector<std::size_t>> fronts;
  std::size_t smallest = 0;
  std::size_t largest = 0;
  for (const KnapsackItem& item : items) {
    KVTILT_RETURN_IF_ERROR(detail::check_item(item, fronts.size(), largest));
    fronts.push_back(detail::undominated(item));
    smallest += item[fronts.back().front()].bytes;
  }
  if (smallest > budget)
    return Status::error(ErrorCode::InvalidArgument,
                         "a budget of %zu bytes is too small: the smallest that works is %zu",
                         budget, smallest);
  std::vector<detail::GridItem> grid = detail::on_grid(items, fronts, budget);
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
