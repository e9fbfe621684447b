// SPDX-License-Identifier: MIT
// Must give two warnings: both results are ignored.
#include <kvtilt/core/status.hpp>

kvtilt::Status status();
kvtilt::Result<int> result();

void ignore() {
  status();
  result();
}
