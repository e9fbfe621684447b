// SPDX-License-Identifier: MIT
/// A head's block of hostile data, and its page by the specification, in the GPU's layout.
#pragma once

#include "device_pages.hpp"
#include "page_data.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace kvtilt::test {

struct SealedHead {
  HeadLayout half;
  HeadLayout packed;
  Block from;
  Block expected;
  Block sealed;

  SealedHead(const Recipe& recipe, int key_dim, int value_dim, int tokens, std::uint64_t seed)
      : half(head_layout({}, key_dim, value_dim, tokens, 0)),
        packed(head_layout(recipe, key_dim, value_dim, tokens, 0)),
        from(half.bytes()),
        expected(packed.bytes()),
        sealed(packed.bytes(), 0xee) {
    Random random(seed);
    Block host(half.bytes());
    fill_half_tensor(random, half.key, packed.key, host.data());
    fill_half_tensor(random, half.value, packed.value, host.data());
    Block page(packed.bytes());
    pack_by_specification(half.key, host.data(), packed.key, page.data());
    pack_by_specification(half.value, host.data(), packed.value, page.data());
    to_fragment_order(half, host.data(), from.data());
    to_fragment_order(packed, page.data(), expected.data());
  }

  [[nodiscard]] const std::byte* keys() const { return from.data() + half.key.codes; }
  [[nodiscard]] const std::byte* values() const { return from.data() + half.value.codes; }

  void expect_equal() const {
    EXPECT_EQ(first_difference(sealed, expected), -1)
        << to_string(packed.key.format, {packed.key.matrix.inner, packed.key.matrix.outer}) << "; "
        << to_string(packed.value.format, {packed.value.matrix.outer, packed.value.matrix.inner})
        << "; codes of values at " << packed.value.codes << ", metadata at " << packed.key.metadata
        << " and " << packed.value.metadata;
    EXPECT_TRUE(sealed.guards_are_whole());
  }
};

/// Calls visit(format, dim, tokens) for formats of a width and heads that the GPU's order supports,
/// until one fails.
template <class Visit>
void for_each_sealed_format(int bits, Visit visit) {
  struct Extents {
    int dim;
    int tokens;
  };
  for (const auto& [dim, tokens] :
       {Extents{64, 64}, {80, 64}, {96, 32}, {112, 128}, {128, 64}, {192, 32}, {256, 64}})
    for (const Format& format : formats_of(bits, {dim, tokens})) {
      if (!cuda::supports_order(head_layout({format, format}, dim, dim, tokens, 0).key.matrix,
                                bits))
        continue;
      visit(format, dim, tokens);
      if (testing::Test::HasFailure()) return;
    }
}

}  // namespace kvtilt::test
