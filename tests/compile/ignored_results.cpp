// SPDX-License-Identifier: MIT
// The compiler must complain twice.
#include <kvtilt/core/status.hpp>

kvtilt::Status status();
kvtilt::Result<int> result();

void ignore() {
  status();
  result();
}
