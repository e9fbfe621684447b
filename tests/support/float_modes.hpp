// SPDX-License-Identifier: MIT
/// Floating point modes that hosts may set: results that must not depend on them are tested in
/// each.
#pragma once

#include <kvtilt/core/config.hpp>

#include <cstdint>

#if KVTILT_X86
#include <xmmintrin.h>
#endif

namespace kvtilt::test {

#if KVTILT_X86
enum class FloatMode : std::uint64_t {
  Usual = 0x1f80,        // exceptions masked, nearest even
  FlushToZero = 0x9fc0,  // results and operands
  RoundDown = 0x3f80,
  RoundUp = 0x5f80,
  RoundToZero = 0x7f80,
};
inline std::uint64_t float_control() { return _mm_getcsr(); }
inline void set_float_control(std::uint64_t control) { _mm_setcsr(static_cast<unsigned>(control)); }
#else
enum class FloatMode : std::uint64_t {  // AArch64
  Usual = 0,
  FlushToZero = 1u << 24 | 1u << 19,  // float32 and fp16
  RoundDown = 2u << 22,
  RoundUp = 1u << 22,
  RoundToZero = 3u << 22,
};
#if KVTILT_ARM64
inline std::uint64_t float_control() {
  std::uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
inline void set_float_control(std::uint64_t control) {
  __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory");
}
#else
inline std::uint64_t float_control() { return 0; }
inline void set_float_control(std::uint64_t) {}
#endif
#endif
inline constexpr FloatMode all_float_modes[] = {FloatMode::Usual, FloatMode::FlushToZero,
                                                FloatMode::RoundDown, FloatMode::RoundUp,
                                                FloatMode::RoundToZero};

/// Sets a mode for its lifetime. Does nothing on architectures that are not named above.
class FloatModeGuard {
 public:
  explicit FloatModeGuard(FloatMode mode) : saved_(float_control()) {
    set_float_control(static_cast<std::uint64_t>(mode));
  }
  ~FloatModeGuard() { set_float_control(saved_); }
  FloatModeGuard(const FloatModeGuard&) = delete;
  FloatModeGuard& operator=(const FloatModeGuard&) = delete;

 private:
  std::uint64_t saved_;
};

}  // namespace kvtilt::test
