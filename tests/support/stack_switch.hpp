// SPDX-License-Identifier: MIT
/// Switches between stacks. swapcontext() makes a system call for the signal mask each time, which
/// would take half the time of emulated kernels; on known architectures a switch takes a few
/// instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

/// Saves the callee-saved registers (System V ABI) on the stack that it leaves.
extern "C" void kvtilt_test_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.weak kvtilt_test_switch_stack
.type kvtilt_test_switch_stack, @function
kvtilt_test_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvtilt_test_switch_stack, . - kvtilt_test_switch_stack
.popsection
)");

namespace kvtilt::test {

/// The stack pointer of a suspended stack.
struct StackContext {
  void* top = nullptr;

  /// The first switch to it calls `function`, which must not return.
  void start(std::byte* stack, std::size_t bytes, void (*function)()) {
    constexpr int registers = 6;
    constexpr int slots = registers + 2;  // return addresses: `function`, and behind it none
    std::uintptr_t* const first = reinterpret_cast<std::uintptr_t*>(stack + bytes) - slots;
    for (int slot = 0; slot < slots; ++slot) first[slot] = 0;
    first[registers] = reinterpret_cast<std::uintptr_t>(function);
    top = first;
  }
};

inline void switch_stack(StackContext& from, StackContext& to) {
  kvtilt_test_switch_stack(&from.top, to.top);
}

}  // namespace kvtilt::test

#else

#include <ucontext.h>

namespace kvtilt::test {

struct StackContext {
  ucontext_t context;

  void start(std::byte* stack, std::size_t bytes, void (*function)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, function, 0);
  }
};

inline void switch_stack(StackContext& from, StackContext& to) {
  swapcontext(&from.context, &to.context);
}

}  // namespace kvtilt::test

#endif
