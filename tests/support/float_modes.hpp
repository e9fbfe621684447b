// SPDX-License-Identifier: MIT
/// Hosts change the floating point environment; what must not depend on it is tested in all of it.
#pragma once

#include <kvtilt/core/config.hpp>

#if KVTILT_X86
#include <xmmintrin.h>
#endif

namespace kvtilt::test {

enum class FloatMode : unsigned {
  Usual = 0x1f80,        // exceptions masked, nearest even
  FlushToZero = 0x9fc0,  // results and operands
  RoundDown = 0x3f80,
  RoundUp = 0x5f80,
  RoundToZero = 0x7f80,
};
inline constexpr FloatMode all_float_modes[] = {FloatMode::Usual, FloatMode::FlushToZero,
                                                FloatMode::RoundDown, FloatMode::RoundUp,
                                                FloatMode::RoundToZero};

/// Sets a mode for its lifetime. Does nothing on other architectures.
class FloatModeGuard {
 public:
#if KVTILT_X86
  explicit FloatModeGuard(FloatMode mode) : saved_(_mm_getcsr()) {
    _mm_setcsr(static_cast<unsigned>(mode));
  }
  ~FloatModeGuard() { _mm_setcsr(saved_); }
#else
  explicit FloatModeGuard(FloatMode) {}
#endif
  FloatModeGuard(const FloatModeGuard&) = delete;
  FloatModeGuard& operator=(const FloatModeGuard&) = delete;

 private:
#if KVTILT_X86
  unsigned saved_;
#endif
};

}  // namespace kvtilt::test
