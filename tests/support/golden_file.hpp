// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

namespace kvtilt::test {

/// A file of tests/golden.
inline std::filesystem::path golden_file(const char* name) {
  return std::filesystem::path(__FILE__).parent_path().parent_path() / "golden" / name;
}

}  // namespace kvtilt::test
