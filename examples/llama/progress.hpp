// SPDX-License-Identifier: MIT
// Shows a percentage on the terminal during long computations.
#pragma once

#include <unistd.h>

#include <cstdio>

namespace llama {

class Progress {
 public:
  /// Whether anything is shown, which is the case if standard error is a terminal.
  [[nodiscard]] bool visible() const { return terminal_; }

  void show(const char* what, double share) {
    const int percent = static_cast<int>(100 * share);
    if (!terminal_ || percent == shown_) return;
    shown_ = percent;
    std::fprintf(stderr, "\r\033[K%s %d %%", what, percent);
  }
  void clear() {
    if (shown_ >= 0) std::fputs("\r\033[K", stderr);
    shown_ = -1;
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  int shown_ = -1;
};

}  // namespace llama
