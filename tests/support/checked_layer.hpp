// SPDX-License-Identifier: MIT
/// A layer's model that remembers which pages were compared: a page with the same tokens and bytes,
/// those of unused slots included, is not compared again. So even a long layer can be compared
/// after every step.
#pragma once

#include "support/cache_bytes.hpp"
#include "support/layer_model.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace kvtilt::test {

class CheckedLayer : public LayerModel {
 public:
  explicit CheckedLayer(LayerModel model) : LayerModel(std::move(model)) {}

  /// Like LayerModel::matches(); also checks that a sealed page keeps the bytes it was sealed with.
  [[nodiscard]] testing::AssertionResult still_matches(const LayerView& view) {
    testing::AssertionResult result = lists_the_pages_of(view);
    std::vector<SeenPage> now;
    for (std::int32_t i = 0; result && i < view.page_count; ++i) {
      const PageEntry& entry = view.pages[i];
      std::byte* end = entry.data + block_bytes(view, entry.kind);
      SeenPage* before = find(entry);
      const bool same_bytes = before != nullptr && std::memcmp(before->bytes.data(), entry.data,
                                                               before->bytes.size()) == 0;
      if (before != nullptr && entry.kind == PageKind::Sealed && !same_bytes)
        result = testing::AssertionFailure() << "sealed page " << i << " changed its bytes";
      else if (!same_bytes || before->last_serial < last_serial(entry))
        result = holds_page(view, i);
      if (same_bytes) {
        now.push_back(std::move(*before));
        now.back().last_serial = last_serial(entry);
      } else {
        now.push_back({entry.kind, serial(entry.first_position), last_serial(entry),
                       std::vector<std::byte>(entry.data, end)});
      }
    }
    seen_ = std::move(now);
    return result;
  }

 private:
  struct SeenPage {
    PageKind kind;
    std::uint64_t first_serial;
    std::uint64_t last_serial;  ///< of the tokens that were compared, or a later one
    std::vector<std::byte> bytes;
  };

  [[nodiscard]] std::uint64_t last_serial(const PageEntry& entry) const {
    return serial(entry.first_position + entry.tokens - 1);
  }

  /// The page with the same first token.
  [[nodiscard]] SeenPage* find(const PageEntry& entry) {
    for (SeenPage& page : seen_)
      if (page.kind == entry.kind && page.first_serial == serial(entry.first_position))
        return &page;
    return nullptr;
  }

  std::vector<SeenPage> seen_;
};

}  // namespace kvtilt::test
