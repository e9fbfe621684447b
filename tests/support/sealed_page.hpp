// SPDX-License-Identifier: MIT
#pragma once

#include <kvtilt/cuda/attention/page.hpp>

#include "support/attend_check.hpp"
#include "support/device_layer.hpp"
#include "support/random.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cstddef>

namespace kvtilt::test {

/// One sealed page in device order, and its values.
template <class Traits>
struct SealedPage {
  CacheOptions options;
  KVCache cache;
  LayerView view;
  DeviceLayer device;
  LiveHead live;

  explicit SealedPage(Random& random, float value_spread = 1.0f)
      : options(page_options()),
        cache(make_cache(shape(), recipe(), options)),
        view(filled(random, value_spread)),
        device({view}, {recipe()}, options),
        live(view, 0) {
    EXPECT_EQ(view.page_count, 1);
    EXPECT_EQ(view.pages[0].kind, PageKind::Sealed);
  }
  [[nodiscard]] const std::byte* data() const {
    const cuda::LayerView& layer = device.layer();
    return layer.block(PageKind::Sealed, 0) + layer.head(PageKind::Sealed, 0).offset;
  }
  [[nodiscard]] double key(int token, int channel) const {
    return static_cast<double>(
        live.keys[static_cast<std::size_t>(token * Traits::key_dim + channel)]);
  }
  [[nodiscard]] double value(int token, int channel) const {
    return static_cast<double>(
        live.values[static_cast<std::size_t>(token * Traits::value_dim + channel)]);
  }

 private:
  static CacheOptions page_options() {
    CacheOptions options;
    options.page_tokens = Traits::page_tokens;
    options.sink_tokens = 0;
    options.recent_tokens = 0;
    return options;
  }
  static LayerShape shape() { return {1, Traits::key_dim, Traits::value_dim, 0}; }
  static Recipe recipe() {
    return {key_format(Traits::key_bits,
                       Traits::token_keys ? Granularity::PerToken : Granularity::PerChannel,
                       Traits::key_group),
            value_format(Traits::value_bits,
                         Traits::channel_values ? Granularity::PerChannel : Granularity::PerToken,
                         Traits::value_group)};
  }
  LayerView filled(Random& random, float value_spread) {
    const int tokens = Traits::page_tokens;
    const SequenceId id = open_reserved(cache, tokens);
    const Rows<float> keys = random_rows(random, tokens, 1, Traits::key_dim, 1.0f, 0.5f);
    const Rows<float> values =
        random_rows(random, tokens, 1, Traits::value_dim, value_spread, value_spread);
    KVTILT_EXPECT_OK(cache.append(id, 0, keys.view(), values.view()));
    return cache.view(id, 0).value();
  }
};

}  // namespace kvtilt::test
