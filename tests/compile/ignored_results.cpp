// SPDX-License-Identifier: MIT
// Must give two warnings.
#include <kvtilt/core/status.hpp>

kvtilt::Status status();
kvtilt::Result<int> result();

void ignore() {
  status();
  result();
}
