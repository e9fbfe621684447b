// SPDX-License-Identifier: MIT
/// A cache of one small head and small pages, and the same tokens in a cache of their own.
#pragma once

#include "support/cache_bytes.hpp"
#include "support/caches.hpp"

#include <gtest/gtest.h>

namespace kvtilt::test {

inline constexpr LayerShape one_head{1, 32, 32, 0};

inline CacheOptions small_pages() {
  CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 16;
  return options;
}

inline void expect_alone(const LayerView& view, const Rows<float>& tokens) {
  KVCache cache = make_cache(one_head, presets::k4v2, small_pages());
  const SequenceId id = open_reserved(cache, tokens.tokens);
  KVTILT_EXPECT_OK(cache.append(id, 0, tokens.view(), tokens.view()));
  EXPECT_TRUE(same_content(view, cache.view(id, 0).value()));
}

}  // namespace kvtilt::test
