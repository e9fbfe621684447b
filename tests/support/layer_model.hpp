// SPDX-License-Identifier: MIT
/// A reference model of a sequence's layer in the plainest form: one value per element, replaced by
/// its quantized value when its page is sealed. It has no blocks, bytes or kernels, and quantizes
/// by itself.
#pragma once

#include <kvtilt/cpu/layer_view.hpp>

#include "support/model_layers.hpp"
#include "support/quantizer_oracle.hpp"
#include "support/rows.hpp"
#include "support/unpack_head.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// Keys or values of a layer, [position][kv head][channel].
struct ModelTensor {
  int heads = 0;
  int dim = 0;
  std::vector<float> values;
  std::vector<float> widths;  ///< magnitudes for attend()'s error bound

  [[nodiscard]] std::size_t at(std::int64_t position, int head, int channel = 0) const {
    return (static_cast<std::size_t>(position) * static_cast<std::size_t>(heads) +
            static_cast<std::size_t>(head)) *
               static_cast<std::size_t>(dim) +
           static_cast<std::size_t>(channel);
  }
  void append(const Rows<float>& rows) {
    for (const float x : rows.data) {
      values.push_back(to_float(to_f16(x)));
      widths.push_back(std::abs(values.back()));
    }
  }
  void truncate(std::int64_t length) {
    values.resize(at(length, 0));
    widths.resize(at(length, 0));
  }
  /// The values that are in these keys.
  [[nodiscard]] ModelTensor first_channels(int count) const {
    ModelTensor part{heads, count, {}, {}};
    for (std::size_t row = 0; row < values.size(); row += static_cast<std::size_t>(dim))
      for (std::size_t i = row; i < row + static_cast<std::size_t>(count); ++i) {
        part.values.push_back(values[i]);
        part.widths.push_back(widths[i]);
      }
    return part;
  }
};

class LayerModel {
 public:
  /// `recipes` are resolved, one per kv head.
  LayerModel(const LayerShape& shape, std::vector<Recipe> recipes, int page_tokens, int sink_tokens,
             int recent_tokens)
      : shape_(shape),
        recipes_(std::move(recipes)),
        page_(page_tokens),
        sinks_(sink_tokens),
        recent_(recent_tokens),
        tail_start_(sink_tokens),
        keys_{shape.kv_heads, shape.key_dim, {}, {}},
        values_{shape.kv_heads, shape.value_dim, {}, {}} {}

  [[nodiscard]] const LayerShape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t length() const { return static_cast<std::int64_t>(serials_.size()); }
  [[nodiscard]] int sink_tokens() const { return sinks_; }
  [[nodiscard]] std::int64_t tail_start() const { return tail_start_; }
  [[nodiscard]] std::int64_t freed_until() const { return freed_until_; }
  [[nodiscard]] const ModelTensor& keys() const { return keys_; }
  [[nodiscard]] const ModelTensor& values() const { return values_; }
  /// A number that distinguishes a token from earlier ones at its position, before a truncation.
  [[nodiscard]] std::uint64_t serial(std::int64_t position) const {
    return serials_[static_cast<std::size_t>(position)];
  }

  /// `values` do not matter if they are in the keys.
  void append(const Rows<float>& keys, const Rows<float>& values) {
    const std::int64_t until = length() + keys.tokens;
    keys_.append(keys);
    if (!shape_.values_in_keys) values_.append(values);
    while (length() < until) {
      serials_.push_back(next_serial_++);
      if (length() - tail_start_ >= recent_ + page_) seal();
    }
    if (shape_.values_in_keys) values_ = keys_.first_channels(shape_.value_dim);
  }

  /// Whether [from, to) consists of whole pages and of positions that the window has freed.
  [[nodiscard]] bool can_remove(std::int64_t from, std::int64_t to) const {
    return may_remove(sealed_, sinks_, freed_until_, from, to);
  }
  bool remove(std::int64_t from, std::int64_t to) {
    if (!can_remove(from, to)) return false;
    const auto [first, last] = pages_between(sealed_, from, to);
    sealed_.erase(sealed_.begin() + static_cast<std::ptrdiff_t>(first),
                  sealed_.begin() + static_cast<std::ptrdiff_t>(last));
    return true;
  }

  /// Whether the window has freed a token that the next token after this truncation would see.
  [[nodiscard]] bool refuses_truncation(std::int64_t length) const {
    if (length >= this->length() || shape_.window == 0) return false;
    for (std::int64_t p = std::max<std::int64_t>(sinks_, length - shape_.window + 1); p < length;
         ++p)
      if (p < freed_until_) return true;
    return false;
  }

  /// Truncates. After a cut inside a sealed page, further tokens start a new tail.
  void truncate(std::int64_t length) {
    if (length >= this->length()) return;
    serials_.resize(static_cast<std::size_t>(length));
    keys_.truncate(length);
    values_.truncate(length);
    while (!sealed_.empty() && sealed_.back().first >= length) sealed_.pop_back();
    if (!sealed_.empty())
      sealed_.back().count = std::min(sealed_.back().count, length - sealed_.back().first);
    if (length < tail_start_) tail_start_ = std::max<std::int64_t>(length, sinks_);
    freed_until_ = length <= sinks_ ? 0 : std::min(freed_until_, length);
  }

  /// The page entries that a view must list; their data is null.
  [[nodiscard]] std::vector<PageEntry> page_table() const {
    std::vector<PageEntry> table;
    const auto add = [&](std::int64_t first, std::int64_t count, PageKind kind) {
      table.push_back({nullptr, first, static_cast<std::int32_t>(count), kind});
    };
    if (sinks_ > 0 && length() > 0)
      add(0, std::min<std::int64_t>(sinks_, length()), PageKind::Sinks);
    for (const SealedPage& page : sealed_) add(page.first, page.count, PageKind::Sealed);
    for (std::int64_t first = tail_start_; first < length(); first += page_)
      add(first, std::min<std::int64_t>(page_, length() - first), PageKind::Tail);
    return table;
  }

  /// Compares length and page table.
  [[nodiscard]] testing::AssertionResult lists_the_pages_of(const LayerView& view) const {
    if (view.length != length())
      return testing::AssertionFailure() << "length " << view.length << ", expected " << length();
    const std::vector<PageEntry> expected = page_table();
    if (static_cast<std::size_t>(view.page_count) != expected.size())
      return testing::AssertionFailure()
             << view.page_count << " pages, expected " << expected.size();
    for (std::size_t i = 0; i < expected.size(); ++i)
      if (view.pages[i].first_position != expected[i].first_position ||
          view.pages[i].tokens != expected[i].tokens || view.pages[i].kind != expected[i].kind)
        return testing::AssertionFailure()
               << "page " << i << " starts at " << view.pages[i].first_position << " with "
               << view.pages[i].tokens << " tokens, expected " << expected[i].first_position
               << " with " << expected[i].tokens << ", or is of another kind";
    return testing::AssertionSuccess();
  }

  /// Compares every value of one page of a view, bit for bit.
  [[nodiscard]] testing::AssertionResult holds_page(const LayerView& view,
                                                    std::int32_t index) const {
    LayerView one = view;
    one.pages += index;
    one.page_count = 1;
    const std::int64_t first = one.pages->first_position;
    const std::int64_t count = one.pages->tokens;
    std::vector<float> keys(static_cast<std::size_t>(count * shape_.key_dim));
    std::vector<float> values(static_cast<std::size_t>(count * shape_.value_dim));
    for (int head = 0; head < shape_.kv_heads; ++head) {
      if (unpack_head(one, head, keys.data(), values.data()) != count)
        return testing::AssertionFailure() << "unpack_head returned another number of tokens";
      for (std::int64_t i = 0; i < count; ++i) {
        if (!same(&keys_.values[keys_.at(first + i, head)], keys.data() + i * shape_.key_dim,
                  shape_.key_dim))
          return testing::AssertionFailure() << "key of token " << first + i << ", head " << head;
        if (!same(&values_.values[values_.at(first + i, head)],
                  values.data() + i * shape_.value_dim, shape_.value_dim))
          return testing::AssertionFailure() << "value of token " << first + i << ", head " << head;
      }
    }
    return testing::AssertionSuccess();
  }

  /// Compares the page table and every value, bit for bit.
  [[nodiscard]] testing::AssertionResult matches(const LayerView& view) const {
    testing::AssertionResult result = lists_the_pages_of(view);
    for (std::int32_t i = 0; result && i < view.page_count; ++i) result = holds_page(view, i);
    return result;
  }

 private:
  struct SealedPage {
    std::int64_t first;
    std::int64_t count;
  };

  static bool same(const float* expected, const float* got, int dim) {
    for (int c = 0; c < dim; ++c)
      if (bit_cast<std::uint32_t>(expected[c]) != bit_cast<std::uint32_t>(got[c])) return false;
    return true;
  }

  void seal() {
    for (int head = 0; head < shape_.kv_heads; ++head) {
      const Recipe& recipe = recipes_[static_cast<std::size_t>(head)];
      quantize(recipe.key, head, keys_);
      if (!shape_.values_in_keys) quantize(recipe.value, head, values_);
    }
    sealed_.push_back({tail_start_, page_});
    tail_start_ += page_;
    const std::int64_t cut = length() - recent_ - shape_.window;
    while (shape_.window > 0 && !sealed_.empty() &&
           sealed_.front().first + sealed_.front().count <= cut) {
      freed_until_ = sealed_.front().first + sealed_.front().count;
      sealed_.erase(sealed_.begin());
    }
  }

  void quantize(const Format& format, int head, ModelTensor& tensor) const {
    if (!format.quantized()) return;
    const bool per_channel = format.granularity == Granularity::PerChannel;
    const int lines = per_channel ? tensor.dim : page_;
    const int extent = per_channel ? page_ : tensor.dim;
    std::vector<std::size_t> group;
    for (int line = 0; line < lines; ++line)
      for (int first = 0; first < extent; first += format.group) {
        group.clear();
        for (int i = first; i < std::min(first + format.group, extent); ++i)
          group.push_back(
              tensor.at(tail_start_ + (per_channel ? i : line), head, per_channel ? line : i));
        quantize(format, group, tensor);
      }
  }

  static void quantize(const Format& format, const std::vector<std::size_t>& group,
                       ModelTensor& tensor) {
    std::vector<std::uint16_t> halves;
    for (const std::size_t i : group) halves.push_back(to_f16(tensor.values[i]).bits);
    const OracleGroup stored = quantize_by_oracle(halves, format.bits, format.rule);
    const auto decoded = [&](int code) {
      return to_float(F16{stored.minimum}) + to_float(F16{stored.scale}) * static_cast<float>(code);
    };
    const float width = std::max(std::abs(decoded(0)), std::abs(decoded((1 << format.bits) - 1)));
    for (std::size_t i = 0; i < group.size(); ++i) {
      tensor.values[group[i]] = decoded(stored.codes[i]);
      tensor.widths[group[i]] = width;
    }
  }

  LayerShape shape_;
  std::vector<Recipe> recipes_;
  int page_;
  int sinks_;
  int recent_;
  std::int64_t tail_start_;
  std::int64_t freed_until_ = 0;  ///< the window has freed sealed positions before it
  ModelTensor keys_;
  ModelTensor values_;
  std::vector<std::uint64_t> serials_;  ///< of every position
  std::uint64_t next_serial_ = 0;
  std::vector<SealedPage> sealed_;
};

}  // namespace kvtilt::test
