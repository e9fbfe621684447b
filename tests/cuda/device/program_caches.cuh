// SPDX-License-Identifier: MIT
/// The calls of a random program on its caches and models, but for appends and attention.
#pragma once

#include "program_state.cuh"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// Runs the calls; each returns an error, or an empty string.
class ProgramCaches : public ProgramState {
 public:
  using ProgramState::ProgramState;

  /// Closes all sequences: then all pages must be free.
  std::string finish() {
    while (!held().empty())
      if (const std::string wrong = close(held().back()); !wrong.empty()) return wrong;
    return compare_memory();
  }

 protected:
  std::string open(std::int64_t tokens) {
    const Result<SequenceId> id = gpu().open();
    const bool full = static_cast<int>(held().size()) == setup().options.max_sequences;
    if (full) return id.code() == ErrorCode::OutOfCapacity ? "" : "opened one too many";
    if (!id) return "open: " + std::string(id.message());
    HeldSequence one{{*id, cpu().open().value()}, {}, true};
    for (int layer = 0; layer < layers(); ++layer) {
      one.layers.emplace_back();
      if (cached(layer))
        one.layers.back().emplace(
            cuda::token_placement(setup().options, setup().shape.layers[at(layer)]));
    }
    held().push_back(std::move(one));
    return reserve(held().back(), tokens);
  }

  std::string reserve(HeldSequence& one, std::int64_t tokens) {
    const std::vector<std::int64_t> free = free_pages();
    const Status status = gpu().reserve(one.ids.gpu, tokens);
    if (tokens < 0 || tokens > most_tokens(one))
      return status.code() == ErrorCode::InvalidArgument ? "" : "reserved more than there can be";
    return given(one, tokens, status, free);
  }

  std::string truncate(HeldSequence& one, std::int64_t length) {
    const bool refused = length < 0 || one.refuses_truncation(length);
    const Status status = gpu().truncate(one.ids.gpu, length);
    if (status.code() != (refused ? ErrorCode::InvalidArgument : ErrorCode::Ok))
      return "truncate(" + std::to_string(length) + "): " + std::string(status.message());
    return refused ? "" : was_truncated(one, length);
  }
  /// Records that the device truncated a sequence.
  std::string was_truncated(HeldSequence& one, std::int64_t length) {
    for (auto& own : one.layers)
      if (own) own->truncate(length);
    return message_of(cpu().truncate(one.ids.cpu, length));
  }

  std::string remove(HeldSequence& one, std::int64_t from, std::int64_t to) {
    const bool works = std::all_of(one.layers.begin(), one.layers.end(), [&](const auto& own) {
      return !own || own->can_remove(from, to);
    });
    const Status status = gpu().remove(one.ids.gpu, from, to);
    if (status.code() != (works ? ErrorCode::Ok : ErrorCode::InvalidArgument))
      return "remove: " + std::string(status.message());
    if (!works) return {};
    for (auto& own : one.layers)
      if (own) own->remove(from, to);
    return message_of(cpu().remove(one.ids.cpu, from, to));
  }

  std::string fork(HeldSequence& parent, std::int64_t tokens) {
    const std::vector<std::int64_t> free = free_pages();
    const Result<SequenceId> id = gpu().fork(parent.ids.gpu, tokens);
    HeldSequence after = parent;
    HeldSequence child = parent;
    for (std::size_t layer = 0; layer < child.layers.size(); ++layer)
      if (child.layers[layer]) child.layers[layer] = after.layers[layer]->fork();
    const std::size_t index = static_cast<std::size_t>(&parent - held().data());
    const SequenceId host = parent.ids.cpu;
    return copied("fork", std::move(child), tokens, id, free, [&] {
      held()[index].layers = after.layers;
      return cpu().fork(host);
    });
  }

  /// Both caches must save the same bytes and load them.
  std::string save_and_load(HeldSequence& one, std::int64_t tokens) {
    const Result<std::size_t> host_bytes = cpu().saved_bytes(one.ids.cpu);
    const Result<std::size_t> bytes = gpu().saved_bytes(one.ids.gpu);
    if (bytes.code() != host_bytes.code()) return "saved_bytes: " + std::string(bytes.message());
    if (!bytes) return {};
    if (*bytes != *host_bytes) return "another number of bytes to save";
    std::vector<std::byte> expected(*bytes);
    KVTILT_EXPECT_OK(cpu().save(one.ids.cpu, expected));
    const PinnedBytes image(std::vector<std::byte>(*bytes, std::byte{0xa5}));
    if (Status status = gpu().save(one.ids.gpu, image.span()); !status.ok())
      return "save: " + message_of(status);
    if (!std::equal(expected.begin(), expected.end(), image.span().begin()))
      return "saved other bytes than the CPU";

    const std::vector<std::int64_t> free = free_pages();
    const Result<SequenceId> id = gpu().load(image.span(), tokens);
    HeldSequence child = one;
    for (auto& own : child.layers)
      if (own) own = own->copy();
    return copied("load", std::move(child), tokens, id, free,
                  [&] { return cpu().load(expected, tokens); });
  }

  std::string close(HeldSequence& one) {
    const BothIds ids = one.ids;
    held().erase(held().begin() + (&one - held().data()));
    closed().push_back(ids.gpu);
    KVTILT_EXPECT_OK(cpu().close(ids.cpu));
    const Status status = gpu().close(ids.gpu);
    return status.ok() && gpu().length(ids.gpu).ok() ? "a closed sequence still answers"
                                                     : message_of(status);
  }

  std::string refresh(HeldSequence& one) {
    const Status status = gpu().refresh(one.ids.gpu, nullptr);
    one.told = !one.wild;
    return status.ok() ? "" : "refresh: " + std::string(status.message());
  }

 private:
  /// Checks that a call made a sequence like `child`, or was refused with good reason; on_host()
  /// makes it on the CPU. `free`: free pages of each layer before the call.
  template <class OnHost>
  std::string copied(const char* name, HeldSequence child, std::int64_t tokens,
                     const Result<SequenceId>& id, const std::vector<std::int64_t>& free,
                     OnHost on_host) {
    tokens = std::max(tokens, child.longest());
    if (child.shortest() != child.longest() || tokens > most_tokens(child))
      return id.code() == ErrorCode::InvalidArgument ? ""
                                                     : std::string(name) + " of what cannot be";
    if (static_cast<int>(held().size()) == setup().options.max_sequences)
      return id.code() == ErrorCode::OutOfCapacity ? "" : std::string(name) + " of one too many";
    if (const std::string wrong = given(child, tokens, id.status(), free); !wrong.empty())
      return std::string(name) + ": " + wrong;
    if (!id) return {};
    child.ids = {*id, on_host().value()};
    held().push_back(std::move(child));
    return {};
  }

  /// Checks that a sequence got pages for `tokens` tokens, or was refused with good reason. `free`:
  /// free pages of each layer before the call.
  std::string given(HeldSequence& one, std::int64_t tokens, const Status& status,
                    const std::vector<std::int64_t>& free) {
    bool may_refuse = false;
    bool must_refuse = false;
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      const PageAccount& own = *one.layers[at(layer)];
      const std::int64_t room =
          view(layer).table_stride - static_cast<std::int64_t>(own.sealed().size()) - own.unused();
      const std::int64_t most = std::min(free[at(layer)], room);
      may_refuse = may_refuse || own.most_missing(tokens) > most;
      must_refuse = must_refuse || own.missing(tokens) > most;
    }
    if (!status.ok())
      return may_refuse && (status.code() == ErrorCode::OutOfMemory ||
                            status.code() == ErrorCode::OutOfCapacity)
                 ? ""
                 : message_of(status);
    if (must_refuse) return "gave what is not there";
    for (int layer = 0; layer < layers(); ++layer) {
      if (!cached(layer)) continue;
      PageAccount& own = *one.layers[at(layer)];
      const std::int64_t pages = free[at(layer)] - gpu().free_pages(layer).value();
      const int window = setup().shape.layers[at(layer)].window;
      if (pages < own.missing(tokens)) return "reserved too few pages";
      if (pages > (window > 0 ? own.most_missing(tokens) : own.missing(tokens)))
        return "reserved too many pages";
      own.reserve(pages);
    }
    return {};
  }
};

}  // namespace kvtilt::test
