// SPDX-License-Identifier: MIT
/// What link_order_side.cpp defines for each set of compiler flags, in a namespace per set.
#pragma once

#include <kvtilt/kvtilt.hpp>

#include <vector>

namespace link_order {

inline constexpr int kv_heads = 2;
inline constexpr int query_heads = 4;
inline constexpr int dim = 64;
inline constexpr int tokens = 300;

struct Engine {
  kvtilt::Result<kvtilt::KVCache> (*fill)(kvtilt::SequenceId& sequence);
  std::vector<float> (*attend)(kvtilt::KVCache& cache, kvtilt::SequenceId sequence);
};

namespace plain {
extern const Engine engine;
}
namespace avx2 {
extern const Engine engine;
}
namespace native {
extern const Engine engine;
}

}  // namespace link_order
