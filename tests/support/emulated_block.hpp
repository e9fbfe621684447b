// SPDX-License-Identifier: MIT
/// One block of emulated threads: where threads wait, and what the lanes of a warp exchange.
#pragma once

#include "fibers.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// The order in which blocks run, and in which the threads of a block take turns.
struct LaunchOrder {
  enum Kind { Forward, Backward, Shuffled };
  Kind kind = Forward;
  std::uint32_t seed = 0;  ///< of Shuffled

  [[nodiscard]] std::vector<int> of(int count, std::uint32_t salt) const {
    std::vector<int> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    if (kind == Backward) std::reverse(order.begin(), order.end());
    if (kind == Shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(seed + salt));
    return order;
  }
};

/// The source location of a call that waits for other threads.
struct CallSite {
  const char* member = nullptr;
  const char* file = nullptr;
  int line = 0;

  [[nodiscard]] bool same(const CallSite& other) const {
    return line == other.line && same(member, other.member) && same(file, other.file);
  }
  [[nodiscard]] static bool same(const char* a, const char* b) {
    return a == b || std::strcmp(a, b) == 0;
  }
  [[nodiscard]] std::string text() const {
    return std::string(member) + " at " + file + ":" + std::to_string(line);
  }
};

struct LaneOperands {
  std::uint32_t words[12];
};
struct WarpOperands {
  LaneOperands lanes[32];
};

class EmulatedBlock {
 public:
  EmulatedBlock(int blocks, int threads, std::size_t shared_bytes, LaunchOrder order)
      : blocks_(blocks),
        order_(order),
        shared_bytes_(shared_bytes),
        shared_(static_cast<std::byte*>(
            ::operator new (shared_bytes + canary_bytes, std::align_val_t{128}))),
        threads_(static_cast<std::size_t>(threads)),
        warps_(static_cast<std::size_t>(threads / 32)),
        fibers_(threads) {
    if (threads <= 0 || threads > 1024 || threads % 32 != 0) {
      ADD_FAILURE() << threads << " threads in a block: only whole warps, up to 32, are emulated";
      failed_ = true;
    }
  }

  [[nodiscard]] int thread_count() const { return static_cast<int>(threads_.size()); }
  [[nodiscard]] int number() const { return number_; }
  [[nodiscard]] int count() const { return blocks_; }
  [[nodiscard]] std::byte* shared() const { return shared_.get(); }

  /// The operands that a thread gives its warp at the next meet_warp().
  [[nodiscard]] LaneOperands& operands(int thread) {
    const Unwatched own;
    Warp& warp = warp_of(thread);
    return warp.operands[warp.meeting.round % 2].lanes[thread % 32];
  }

  /// Waits until all lanes of the warp have called it. Returns their operands, which stay until the
  /// thread's next call.
  const WarpOperands& meet_warp(int thread, CallSite site) {
    const Unwatched own;
    Warp& warp = warp_of(thread);
    const std::uint64_t round = warp.meeting.round;
    meet(warp.meeting, 32, thread, site);
    // A lane that is already at its next call writes to the other half; no lane can be further.
    return warp.operands[round % 2];
  }

  /// Waits until all threads of the block have called it.
  void meet_block(int thread, CallSite site) {
    const Unwatched own;
    meet(block_, thread_count(), thread, site);
  }

  /// Orders what the threads did before a meeting that follows, of the warp or of the block, before what
  /// they do after it: the meeting alone does not, as on the GPU.
  class Ordered {
   public:
    Ordered(EmulatedBlock& block, int thread, bool whole_block) : address_(nullptr) {
      const Unwatched own;
      Meeting& meeting = whole_block ? block.block_ : block.warp_of(thread).meeting;
      // A thread that is one meeting ahead must not order those behind it.
      address_ = &meeting.sides[meeting.round % 2];
      watch_release(address_);
    }
    Ordered(const Ordered&) = delete;
    Ordered& operator=(const Ordered&) = delete;
    ~Ordered() { watch_acquire(address_); }

   private:
    const void* address_;
  };

  /// Before an atomic operation that acquires nothing. Returns whether it is a release: after a fence().
  bool count(int thread, const void* where) {
    if (!watches_races) return false;  // any order will do
    const Unwatched own;
    Thread& self = threads_[static_cast<std::size_t>(thread)];
    self.counted.push_back(where);
    return self.fenced;
  }
  /// Makes the atomic operations so far acquires, and those that follow releases.
  void fence(int thread) {
    const Unwatched own;
    Thread& self = threads_[static_cast<std::size_t>(thread)];
    self.fenced = true;
    for (const void* where : self.counted) watch_acquire(where);
    self.counted.clear();
  }

  /// Lets other threads run until the word changes; if no thread changes it, that is a deadlock.
  void wait_for_change(int thread, const std::uint64_t& word, CallSite site) {
    const Unwatched own;
    Thread& self = threads_[static_cast<std::size_t>(thread)];
    self.site = site;
    self.word = &word;
    self.seen = word;
    fibers_.suspend();
    self.word = nullptr;
  }

  /// Runs all threads of one block. Returns false if it cannot end.
  bool run(int number, const std::function<void(int)>& body) {
    if (failed_) return false;
    number_ = number;
    block_ = {};
    std::fill(warps_.begin(), warps_.end(), Warp{});
    std::memset(shared_.get(), 0xff, shared_bytes_ + canary_bytes);
    for (int thread = 0; thread < thread_count(); ++thread) {
      threads_[static_cast<std::size_t>(thread)] = {};
      fibers_.start(thread, [this, &body, thread] {
        try {
          body(thread);
        } catch (const std::exception& error) {
          report(thread, std::string("threw: ") + error.what());
        }
      });
    }
    take_turns();
    check_canary();
    return !failed_;
  }

 private:
  static constexpr std::size_t canary_bytes = 256;

  struct Meeting {
    std::uint64_t round = 0;  ///< meetings that have ended
    char sides[2] = {};       ///< addresses for Ordered
    int arrived = 0;
    CallSite site;
  };
  struct Warp {
    Meeting meeting;
    WarpOperands operands[2];
  };
  struct Thread {
    const std::uint64_t* word = nullptr;  ///< waits until it is no longer `seen`
    std::uint64_t seen = 0;
    CallSite site;
    bool fenced = false;               ///< has called fence()
    std::vector<const void*> counted;  ///< of atomic operations since then
  };
  struct AlignedDelete {
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{128}); }
  };

  Warp& warp_of(int thread) { return warps_[static_cast<std::size_t>(thread / 32)]; }

  void report(int thread, const std::string& why) {
    ADD_FAILURE() << "block " << number_ << ", thread " << thread << ": " << why << waiting();
    failed_ = true;
  }

  void meet(Meeting& meeting, int expected, int thread, CallSite site) {
    if (meeting.arrived == 0) meeting.site = site;
    if (!meeting.site.same(site)) {
      report(thread, site.text() + ", while others wait in " + meeting.site.text());
      fibers_.suspend();  // forever: a failed block is not resumed, so its stack may own nothing
    }
    if (++meeting.arrived < expected) {
      wait_for_change(thread, meeting.round, site);
    } else {
      meeting.arrived = 0;
      ++meeting.round;
    }
  }

  void take_turns() {
    std::uint32_t turn = 0;
    std::vector<int> turns = order_.of(thread_count(), turn);
    for (bool alive = true, moved = true; alive; ++turn) {
      if (!moved) {
        ADD_FAILURE() << "block " << number_ << ": deadlock" << waiting();
        failed_ = true;
        return;
      }
      alive = moved = false;
      if (turn > 0 && order_.kind == LaunchOrder::Shuffled) turns = order_.of(thread_count(), turn);
      for (const int thread : turns) {
        const Thread& state = threads_[static_cast<std::size_t>(thread)];
        if (fibers_.finished(thread)) continue;
        alive = true;
        if (state.word != nullptr && *state.word == state.seen) continue;
        moved = true;
        fibers_.resume(thread);
        if (failed_) return;
      }
    }
  }

  /// Where each thread waits, grouped by place.
  [[nodiscard]] std::string waiting() const {
    std::string text;
    std::string last;
    for (int thread = 0; thread < thread_count(); ++thread) {
      const Thread& state = threads_[static_cast<std::size_t>(thread)];
      std::string place = fibers_.finished(thread) ? "ended"
                          : state.word == nullptr  ? "runs"
                                                   : "waits in " + state.site.text();
      if (place != last) text += "\n  from thread " + std::to_string(thread) + ": " + place;
      last = std::move(place);
    }
    return text;
  }

  void check_canary() {
    for (std::size_t byte = shared_bytes_; byte < shared_bytes_ + canary_bytes; ++byte)
      if (shared_.get()[byte] != std::byte{0xff}) {
        ADD_FAILURE() << "block " << number_ << " wrote byte " << byte << " of its "
                      << shared_bytes_ << " bytes of shared memory";
        failed_ = true;
        return;
      }
  }

  int blocks_;
  int number_ = 0;
  LaunchOrder order_;
  std::size_t shared_bytes_;
  std::unique_ptr<std::byte, AlignedDelete> shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Meeting block_;
  Fibers fibers_;
  bool failed_ = false;
};

}  // namespace kvtilt::test
