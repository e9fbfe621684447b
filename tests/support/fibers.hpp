// SPDX-License-Identifier: MIT
/// Functions that can suspend and resume, all on one system thread: the threads of an emulated
/// block. Stacks have a guard page; address and thread sanitizer are told of each switch.
#pragma once

#include "race_watch.hpp"
#include "stack_switch.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define KVTILT_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVTILT_TEST_ASAN 1
#endif
#endif
#if defined(KVTILT_TEST_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvtilt::test {

class Fibers {
 public:
  static constexpr std::size_t stack_bytes = 256 * 1024;
  /// What fibers did happens before what follows watch_acquire() of this, once they have ended.
  static inline const char ended = 0;

  explicit Fibers(int count)
      : guard_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))),
        fibers_(static_cast<std::size_t>(count)) {
    mapped_ = (guard_ + stack_bytes) * fibers_.size();
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks_ = static_cast<std::byte*>(memory);
    for (std::size_t index = 0; index < fibers_.size(); ++index)
      mprotect(stacks_ + index * (guard_ + stack_bytes), guard_, PROT_NONE);
  }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;
  ~Fibers() {
#if defined(KVTILT_TEST_ASAN)
    for (std::size_t index = 0; index < fibers_.size(); ++index)
      __asan_unpoison_memory_region(stack(index), stack_bytes);
#endif
    munmap(stacks_, mapped_);
  }

  /// The function starts at the first resume(). Whatever the fiber was doing before is abandoned:
  /// its objects are not destroyed.
  void start(int index, std::function<void()> function) {
    const std::size_t at = static_cast<std::size_t>(index);
    Fiber& fiber = fibers_[at];
    fiber.function = std::move(function);
    fiber.finished = false;
    fiber.context.start(stack(at), stack_bytes, &Fibers::enter);
    caller_watched_.be_current();
    fiber.watched.begin();
#if defined(KVTILT_TEST_ASAN)
    __asan_unpoison_memory_region(stack(at), stack_bytes);
    fiber.fake_stack = nullptr;
#endif
  }

  /// Runs a fiber until it suspends itself or ends.
  void resume(int index) {
    running_ = static_cast<std::size_t>(index);
    active() = this;
#if defined(KVTILT_TEST_ASAN)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack(running_), stack_bytes);
#endif
    fibers_[running_].watched.switch_to();
    switch_stack(caller_, fibers_[running_].context);
#if defined(KVTILT_TEST_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  /// Called in a fiber: returns to resume().
  void suspend() {
    Fiber& fiber = running();
#if defined(KVTILT_TEST_ASAN)
    __sanitizer_start_switch_fiber(fiber.finished ? nullptr : &fiber.fake_stack, caller_stack_,
                                   caller_stack_bytes_);
#endif
    caller_watched_.switch_to();
    switch_stack(fiber.context, caller_);
#if defined(KVTILT_TEST_ASAN)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &caller_stack_, &caller_stack_bytes_);
#endif
  }

  [[nodiscard]] bool finished(int index) const {
    return fibers_[static_cast<std::size_t>(index)].finished;
  }

 private:
  struct Fiber {
    StackContext context;
    std::function<void()> function;
    bool finished = true;
    void* fake_stack = nullptr;
    WatchedFiber watched;
  };

  static Fibers*& active() {
    static thread_local Fibers* fibers = nullptr;
    return fibers;
  }

  static void enter() {
    Fibers* self;
    Fiber* fiber;
    {
      const Unwatched own;
      self = active();
      fiber = &self->running();
    }
#if defined(KVTILT_TEST_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
#endif
    fiber->function();
    watch_release(&ended);
    {
      const Unwatched own;
      fiber->finished = true;
    }
    self->suspend();
  }

  [[nodiscard]] Fiber& running() {
    const Unwatched own;
    return fibers_[running_];
  }

  [[nodiscard]] std::byte* stack(std::size_t index) const {
    return stacks_ + index * (guard_ + stack_bytes) + guard_;
  }

  std::size_t guard_;
  std::vector<Fiber> fibers_;
  std::byte* stacks_ = nullptr;
  std::size_t mapped_ = 0;
  std::size_t running_ = 0;
  StackContext caller_;
  WatchedFiber caller_watched_;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] std::size_t caller_stack_bytes_ = 0;
};

}  // namespace kvtilt::test
