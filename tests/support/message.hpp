// SPDX-License-Identifier: MIT
/// The message of a result as a string, for matchers.
#pragma once

#include <kvtilt/core/status.hpp>

#include <string>

namespace kvtilt::test {

template <class T>
std::string message(const Result<T>& result) {
  return std::string(result.message());
}

}  // namespace kvtilt::test
