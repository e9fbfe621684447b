// SPDX-License-Identifier: MIT
// Which tensors a model gives to its cache as Hadamard transforms.
#pragma once

#include <string>

namespace llama {

/// Transforms (kvtilt/quant/hadamard.hpp) change what quantization loses and nothing else. That of
/// values is folded into the weights on both sides of attention; keys and queries are transformed
/// behind RoPE.
struct Transforms {
  bool keys = false;
  bool values = false;

  friend bool operator==(const Transforms&, const Transforms&) = default;
};

/// "keys and values", "keys", "values" or "nothing".
inline std::string to_string(Transforms transforms) {
  if (transforms.keys) return transforms.values ? "keys and values" : "keys";
  return transforms.values ? "values" : "nothing";
}

}  // namespace llama
