// SPDX-License-Identifier: MIT
/// A layer of a sequence as the design describes it, in the plainest form: one value per element,
/// replaced by its quantized value when its page is sealed. Knows no blocks, no bytes, no
/// kernels, and quantizes on its own.
#pragma once

#include <kvtilt/page/layer_view.hpp>
#include <kvtilt/page/unpack.hpp>

#include "support/quantizer_oracle.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

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
        tail_start_(sink_tokens) {}

  [[nodiscard]] std::int64_t length() const { return static_cast<std::int64_t>(tokens_.size()); }
  [[nodiscard]] std::int64_t tail_start() const { return tail_start_; }

  void append(const Rows<float>& keys, const Rows<float>& values) {
    for (std::int64_t t = 0; t < keys.tokens; ++t) {
      Token token;
      for (int head = 0; head < shape_.kv_heads; ++head) {
        for (int c = 0; c < shape_.key_dim; ++c)
          token.key.push_back(to_float(to_f16(keys.at(t, head, c))));
        for (int c = 0; c < shape_.value_dim; ++c)
          token.value.push_back(to_float(to_f16(values.at(t, head, c))));
      }
      tokens_.push_back(token);
      if (length() - tail_start_ >= recent_ + page_) seal();
    }
  }

  /// Drops the sealed pages that hold exactly [from, to); false if there are none.
  bool remove(std::int64_t from, std::int64_t to) {
    std::size_t first = 0;
    while (first < sealed_.size() && sealed_[first].first != from) ++first;
    std::size_t last = first;
    while (last < sealed_.size() && sealed_[last].first < to) ++last;
    if (last == first || sealed_[last - 1].first + sealed_[last - 1].count != to) return false;
    sealed_.erase(sealed_.begin() + static_cast<std::ptrdiff_t>(first),
                  sealed_.begin() + static_cast<std::ptrdiff_t>(last));
    return true;
  }

  /// Whether the window has freed something the next token after a truncation would see.
  [[nodiscard]] bool refuses_truncation(std::int64_t length) const {
    if (length >= this->length() || shape_.window == 0) return false;
    for (std::int64_t p = std::max<std::int64_t>(sinks_, length - shape_.window + 1); p < length;
         ++p)
      if (p < freed_until_) return true;
    return false;
  }

  [[nodiscard]] std::int64_t freed_until() const { return freed_until_; }

  /// Positions that are there, in order.
  [[nodiscard]] std::vector<std::int64_t> live_positions() const {
    std::vector<std::int64_t> positions;
    for (const PageEntry& page : page_table())
      for (std::int32_t i = 0; i < page.tokens; ++i) positions.push_back(page.first_position + i);
    return positions;
  }
  [[nodiscard]] const std::vector<float>& key(std::int64_t position) const {
    return tokens_[static_cast<std::size_t>(position)].key;
  }
  [[nodiscard]] const std::vector<float>& value(std::int64_t position) const {
    return tokens_[static_cast<std::size_t>(position)].value;
  }

  /// The tokens behind a cut inside a sealed page start a new tail.
  void truncate(std::int64_t length) {
    if (length >= this->length()) return;
    tokens_.resize(static_cast<std::size_t>(length));
    while (!sealed_.empty() && sealed_.back().first >= length) sealed_.pop_back();
    if (!sealed_.empty())
      sealed_.back().count = std::min(sealed_.back().count, length - sealed_.back().first);
    if (length < tail_start_) tail_start_ = std::max<std::int64_t>(length, sinks_);
    freed_until_ = std::min(freed_until_, length);
  }

  /// Page table and every value, bit for bit.
  [[nodiscard]] testing::AssertionResult matches(const LayerView& view) const {
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
    const std::vector<std::int64_t> live = live_positions();
    for (int head = 0; head < shape_.kv_heads; ++head) {
      std::vector<float> keys(live.size() * static_cast<std::size_t>(shape_.key_dim));
      std::vector<float> values(live.size() * static_cast<std::size_t>(shape_.value_dim));
      if (unpack(view, head, keys.data(), values.data()) != static_cast<std::int64_t>(live.size()))
        return testing::AssertionFailure() << "unpack returned another number of tokens";
      for (std::size_t i = 0; i < live.size(); ++i) {
        if (!same(key(live[i]), keys, head, shape_.key_dim, i))
          return testing::AssertionFailure() << "key of token " << live[i] << ", head " << head;
        if (!same(value(live[i]), values, head, shape_.value_dim, i))
          return testing::AssertionFailure() << "value of token " << live[i] << ", head " << head;
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  struct Token {
    std::vector<float> key;  ///< [head][channel]
    std::vector<float> value;
  };
  struct SealedPage {
    std::int64_t first;
    std::int64_t count;
  };

  static bool same(const std::vector<float>& expected, const std::vector<float>& got, int head,
                   int dim, std::size_t token) {
    for (int c = 0; c < dim; ++c)
      if (bit_cast<std::uint32_t>(expected[static_cast<std::size_t>(head * dim + c)]) !=
          bit_cast<std::uint32_t>(
              got[token * static_cast<std::size_t>(dim) + static_cast<std::size_t>(c)]))
        return false;
    return true;
  }

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

  void seal() {
    for (int head = 0; head < shape_.kv_heads; ++head) {
      const Recipe& recipe = recipes_[static_cast<std::size_t>(head)];
      quantize(recipe.key, shape_.key_dim, head, &Token::key);
      quantize(recipe.value, shape_.value_dim, head, &Token::value);
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

  void quantize(const Format& format, int dim, int head, std::vector<float> Token::*member) {
    if (!format.quantized()) return;
    const bool per_channel = format.granularity == Granularity::PerChannel;
    const int lines = per_channel ? dim : page_;
    const int extent = per_channel ? page_ : dim;
    for (int line = 0; line < lines; ++line)
      for (int first = 0; first < extent; first += format.group) {
        std::vector<float*> group;
        for (int i = first; i < std::min(first + format.group, extent); ++i) {
          const int token = per_channel ? i : line;
          const int channel = per_channel ? line : i;
          Token& own = tokens_[static_cast<std::size_t>(tail_start_ + token)];
          group.push_back(&(own.*member)[static_cast<std::size_t>(head * dim + channel)]);
        }
        quantize(format, group);
      }
  }

  static void quantize(const Format& format, const std::vector<float*>& group) {
    std::vector<std::uint16_t> halves;
    for (const float* x : group) halves.push_back(to_f16(*x).bits);
    const OracleGroup stored = quantize_by_oracle(halves, format.bits, format.rule);
    for (std::size_t i = 0; i < group.size(); ++i)
      *group[i] = to_float(F16{stored.minimum}) +
                  to_float(F16{stored.scale}) * static_cast<float>(stored.codes[i]);
  }

  LayerShape shape_;
  std::vector<Recipe> recipes_;
  int page_;
  int sinks_;
  int recent_;
  std::int64_t tail_start_;
  std::int64_t freed_until_ = 0;  ///< sealed positions before it went with the window
  std::vector<Token> tokens_;
  std::vector<SealedPage> sealed_;
};

}  // namespace kvtilt::test
