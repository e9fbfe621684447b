// SPDX-License-Identifier: MIT
/// Tells ThreadSanitizer, where a test is built with it, that fibers are threads of their own, and
/// what orders their accesses. It then finds races of kernels: between threads of a block without a
/// sync() in between, and between blocks, in whatever order the emulator runs them. In other builds
/// all of this does nothing.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define KVTILT_TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVTILT_TEST_TSAN 1
#endif
#endif
#if defined(KVTILT_TEST_TSAN)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace kvtilt::test {

#if defined(KVTILT_TEST_TSAN)

inline constexpr bool watches_races = true;

/// What this thread did so far happens before what others do after watch_acquire() of `at`.
inline void watch_release(const void* at) { __tsan_release(const_cast<void*>(at)); }
inline void watch_acquire(const void* at) { __tsan_acquire(const_cast<void*>(at)); }

/// A fiber as ThreadSanitizer sees it. A switch to it orders nothing.
class WatchedFiber {
 public:
  WatchedFiber() = default;
  WatchedFiber(const WatchedFiber&) = delete;
  WatchedFiber& operator=(const WatchedFiber&) = delete;
  ~WatchedFiber() { end(); }

  /// A new thread, which follows what the caller did so far.
  void begin() {
    end();
    created_ = fiber_ = __tsan_create_fiber(0);
  }
  void be_current() { fiber_ = __tsan_get_current_fiber(); }
  void switch_to() const { __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync); }

 private:
  void end() {
    if (created_ != nullptr) __tsan_destroy_fiber(created_);
    created_ = nullptr;
  }
  void* fiber_ = nullptr;
  void* created_ = nullptr;
};

/// While it lives, accesses of this thread are not watched: the emulator's own.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

#else

inline constexpr bool watches_races = false;

inline void watch_release(const void*) {}
inline void watch_acquire(const void*) {}

struct WatchedFiber {
  void begin() {}
  void be_current() {}
  void switch_to() const {}
};

struct Unwatched {
  Unwatched() {}  // not trivial: an unused variable is no warning
};

#endif

}  // namespace kvtilt::test
