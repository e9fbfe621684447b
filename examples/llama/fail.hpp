// SPDX-License-Identifier: MIT
// Error reporting of the example: one sentence in an exception that main() prints.
#pragma once

#include <sstream>
#include <stdexcept>

namespace llama {

/// Throws std::runtime_error whose text is the arguments written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

}  // namespace llama
