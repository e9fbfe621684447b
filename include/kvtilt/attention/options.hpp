// SPDX-License-Identifier: MIT
/// What attention may be told beyond its tensors.
#pragma once

namespace kvtilt {

struct AttendOptions {
  float scale = 0.0f;  ///< multiplies q.k; 0: 1 / sqrt(key_dim)
};

}  // namespace kvtilt
