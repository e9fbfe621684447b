// SPDX-License-Identifier: MIT
/// Runs the calls of a random program, all but attention, on a cache and on its model.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cache/memory_plan.hpp>

#include "support/checked_layer.hpp"
#include "support/counting_allocator.hpp"
#include "support/model_layers.hpp"
#include "support/random_input.hpp"
#include "support/random_program.hpp"
#include "support/unpack_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {

/// The model of one sequence.
struct ModelSequence {
  SequenceId id;
  std::vector<std::optional<CheckedLayer>> layers;
  std::int64_t capacity = 0;
  bool may_lack_pages = false;  ///< it was cut inside a sealed page, or shares pages

  [[nodiscard]] std::int64_t shortest() const { return shortest_of(layers); }
  [[nodiscard]] std::int64_t longest() const { return longest_of(layers); }
};

/// Calls return what went wrong, or an empty string.
class ProgramCache {
 public:
  explicit ProgramCache(std::uint64_t seed) : random_(seed), setup_(random_) {
    setup_.options.allocator = memory_.get();
    page_memory_.resize(setup_.page_memory, std::byte{0xff});
    setup_.options.page_memory = page_memory_;
    cache_.emplace(make_cache(setup_.shape, setup_.plan, setup_.options));
    resolved_ = resolve_plan(setup_.plan, setup_.shape, setup_.options.page_tokens).value();
  }

 protected:
  std::string open(std::int64_t tokens, Random& random) {
    if (models_.empty() && random.chance(3))
      tokens = std::max(tokens, std::min<std::int64_t>(most_alone(), 2000));
    const Result<SequenceId> id = cache_->open();
    if (models_.size() == 5) return id.ok() ? "opened a sixth of five sequences" : "";
    if (!id) return std::string(id.message());
    ModelSequence model;
    model.id = *id;
    for (std::size_t layer = 0; layer < setup_.shape.layers.size(); ++layer) {
      const LayerShape& shape = setup_.shape.layers[layer];
      model.layers.emplace_back();
      if (shape.kv_heads == 0) continue;
      std::vector<Recipe> recipes = resolved_.recipes[layer];
      recipes.resize(static_cast<std::size_t>(shape.kv_heads), recipes[0]);
      model.layers.back().emplace(LayerModel(shape, recipes, setup_.options.page_tokens,
                                             setup_.options.sink_tokens,
                                             setup_.options.recent_tokens));
    }
    models_.push_back(std::move(model));
    const std::string wrong = reserve(models_.back(), tokens, random);
    if (!wrong.empty() || models_.size() > 1 || models_[0].capacity == tokens) return wrong;
    // Refused. If it is the only sequence, all memory is available to it.
    const Status again = cache_->reserve(models_[0].id, tokens);
    if (again.ok()) models_[0].capacity = tokens;
    return again.ok() || tokens > most_alone() ? ""
                                               : "lost memory: " + std::string(again.message());
  }

  /// Makes a call that may allocate, with an allocator that may fail. Sets `may_refuse` if
  /// OutOfMemory would be right.
  template <class Call>
  auto with_scarce_memory(Random& random, bool& may_refuse, Call call) {
    const std::size_t calls = memory_.calls;
    const std::int64_t allowed = random.chance(4) ? random.below(4) : -1;
    memory_.refuse_after = allowed;
    auto result = call();
    memory_.refuse_after = -1;
    may_refuse = setup_.scarce() ||
                 (allowed >= 0 && memory_.calls - calls > static_cast<std::size_t>(allowed));
    return result;
  }

  std::string reserve(ModelSequence& model, std::int64_t tokens, Random& random) {
    bool may_refuse = false;
    const Status status =
        with_scarce_memory(random, may_refuse, [&] { return cache_->reserve(model.id, tokens); });
    const bool holds_it = model.capacity > 0 && tokens <= model.capacity && !model.may_lack_pages;
    if (status.code() == ErrorCode::OutOfMemory && may_refuse && !holds_it) return {};
    if (tokens >= model.capacity) model.may_lack_pages = false;
    model.capacity = std::max(model.capacity, tokens);
    return std::string(status.message());
  }

  std::string append_random(ModelSequence& model, int layer, int amount, Random& random) {
    const std::size_t index = static_cast<std::size_t>(layer) % model.layers.size();
    if (!model.layers[index]) return {};
    const LayerShape& shape = setup_.shape.layers[index];
    const RandomInput keys(random, amount, shape.kv_heads, shape.key_dim);
    const RandomInput values = RandomInput::values(random, amount, shape);
    if (amount > 0 && random.chance(12)) return append_spoiled(model, index, keys, values, random);
    return append(model, index, keys, values);
  }

  /// Appends with one element that cannot be stored: the call must fail and, as the later
  /// comparison shows, change nothing.
  std::string append_spoiled(ModelSequence& model, std::size_t layer, RandomInput keys,
                             RandomInput values, Random& random) {
    const bool in_keys = setup_.shape.layers[layer].values_in_keys;
    RandomInput& spoilt = in_keys || random.chance(2) ? keys : values;
    const std::uint32_t bits = pick(random, {0x7fc00000u, 0x7f800000u, 0xff800000u, 0xffffffffu});
    const Rows<float>& rows = spoilt.rows();
    spoilt.spoil(random.below(static_cast<int>(rows.tokens)), random.below(rows.heads),
                 random.below(rows.dim), bits);
    const ErrorCode code =
        cache_->append(model.id, static_cast<int>(layer), keys.view(), values.view()).code();
    return code == ErrorCode::InvalidValue || code == ErrorCode::OutOfCapacity
               ? ""
               : "accepted what cannot be stored";
  }

  std::string append(ModelSequence& model, std::size_t layer, const RandomInput& keys,
                     const RandomInput& values) {
    CheckedLayer& own = *model.layers[layer];
    const bool room = own.length() + keys.rows().tokens <= model.capacity;
    const auto call = [&] {
      return cache_->append(model.id, static_cast<int>(layer), keys.view(), values.view());
    };
    Status status = call();
    if (status.code() == ErrorCode::OutOfCapacity) {
      if (!room) return {};
      if (!model.may_lack_pages ||
          std::string(status.message()).find("reserve again") == std::string::npos)
        return "refused what was reserved";
      const Status again = cache_->reserve(model.id, model.capacity);
      if (again.code() == ErrorCode::OutOfMemory && setup_.scarce()) return {};
      if (!again.ok()) return std::string(again.message());
      model.may_lack_pages = false;
      status = call();
    }
    if (!status.ok()) return std::string(status.message());
    if (!room) return "accepted more than was reserved";
    own.append(keys.rows(), values.rows());
    return {};
  }

  std::string truncate(ModelSequence& model, std::int64_t length) {
    bool refused = false;
    for (const auto& own : model.layers)
      refused = refused || (own && own->refuses_truncation(length));
    const Status status = cache_->truncate(model.id, length);
    if (status.ok() == refused)
      return "truncate(" + std::to_string(length) + ") " + (refused ? "worked" : "failed");
    if (refused) return {};
    for (auto& own : model.layers) {
      if (!own) continue;
      model.may_lack_pages = model.may_lack_pages || length < own->tail_start();
      own->truncate(length);
    }
    return {};
  }

  std::string fork(ModelSequence& model, int tokens, Random& random) {
    const bool possible = models_.size() < 5 && model.shortest() == model.longest();
    const std::ptrdiff_t index = &model - models_.data();
    std::string wrong;
    if (made("fork", model, tokens, possible, wrong, random,
             [&] { return cache_->fork(model.id, tokens); }))
      models_[static_cast<std::size_t>(index)].may_lack_pages = true;
    return wrong;
  }

  /// Saves a sequence and loads it as another one; a damaged image must not load.
  std::string save_and_load(const ModelSequence& model, int tokens, Random& random) {
    const Result<std::size_t> bytes = cache_->saved_bytes(model.id);
    if (bytes.ok() != (model.shortest() == model.longest()))
      return "saved_bytes: " + std::string(bytes.message());
    if (!bytes) return {};
    std::vector<std::byte> image(*bytes, std::byte{0xa5});
    if (Status status = cache_->save(model.id, image); !status.ok())
      return std::string(status.message());
    std::vector<std::byte> damaged = image;
    damaged[random.next() % *bytes] ^= static_cast<std::byte>(1 << random.below(8));
    const ErrorCode code = cache_->load(damaged).code();
    if (code != ErrorCode::Corrupt && code != ErrorCode::Unsupported) return "loaded damaged bytes";

    std::string wrong;
    if (!made("load", model, tokens, models_.size() < 5, wrong, random,
              [&] { return cache_->load(image, tokens); }))
      return wrong;
    std::vector<std::byte> again(*bytes);
    if (Status status = cache_->save(models_.back().id, again); !status.ok())
      return std::string(status.message());
    return image == again ? "" : "what was loaded saves as something else";
  }

  std::string remove(ModelSequence& model, Random& random) {
    const std::int64_t page = setup_.options.page_tokens;
    const std::int64_t from = setup_.options.sink_tokens + page * random.below(6);
    const std::int64_t to = from + page * random.between(1, 2) - (random.chance(5) ? 3 : 0);
    bool works = true;
    for (const auto& own : model.layers) works = works && (!own || own->can_remove(from, to));
    const Status status = cache_->remove(model.id, from, to);
    if (status.ok() != works) return "remove: " + std::string(status.message());
    for (auto& own : model.layers)
      if (works && own) own->remove(from, to);
    return {};
  }

  std::string unpack(const ModelSequence& model, int layer, Random& random) const {
    const std::size_t index = static_cast<std::size_t>(layer) % model.layers.size();
    if (!model.layers[index]) return {};
    return unpack_differs(*cache_, model.id, static_cast<int>(index), *model.layers[index], random);
  }

  std::string close(ModelSequence& model) {
    const SequenceId id = model.id;
    const Status status = cache_->close(id);
    models_.erase(models_.begin() + (&model - models_.data()));
    if (cache_->length(id).ok()) return "a closed sequence still answers";
    return std::string(status.message());
  }

  std::string close_all() {
    while (!models_.empty())
      if (const std::string wrong = close(models_.back()); !wrong.empty()) return wrong;
    return {};
  }

  /// Compares all content and reports of the cache with the model.
  std::string compare() {
    for (ModelSequence& model : models_)
      if (const std::string wrong = compare(model); !wrong.empty()) return wrong;
    return compare_memory();
  }

  const ProgramSetup& setup() const { return setup_; }
  KVCache& cache() { return *cache_; }
  std::vector<ModelSequence>& models() { return models_; }
  const std::vector<ModelSequence>& models() const { return models_; }

 private:
  /// Tokens that a sequence can reserve if it is the only one; -1: not even 0.
  [[nodiscard]] std::int64_t most_alone() const {
    if (!setup_.scarce()) return max_tokens;
    const Result<std::int64_t> most = most_tokens(setup_.shape, setup_.plan, setup_.options);
    return most.ok() ? *most : -1;
  }

  /// Makes a call that may copy a sequence, reserved for `tokens` tokens, whose model is then
  /// `child`. Returns whether it did, and sets `wrong` if that is wrong.
  template <class Call>
  bool made(const char* name, ModelSequence child, std::int64_t tokens, bool possible,
            std::string& wrong, Random& random, Call call) {
    const std::size_t reserved = cache_->memory().reserved_bytes;
    bool may_refuse = false;
    const Result<SequenceId> id = with_scarce_memory(random, may_refuse, call);
    if (id.code() == ErrorCode::OutOfMemory && may_refuse && possible) {
      if (cache_->memory().reserved_bytes > reserved)
        wrong = std::string(name) + " failed and kept memory";
      return false;
    }
    if (id.ok() != possible) wrong = std::string(name) + ": " + std::string(id.message());
    if (!id) return false;
    child.id = *id;
    child.capacity = std::max(child.longest(), tokens);
    child.may_lack_pages = false;
    models_.push_back(std::move(child));
    return true;
  }

  std::string compare(ModelSequence& model) {
    std::int64_t elements = 0;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      if (!model.layers[layer]) continue;
      const Result<LayerView> view = cache_->view(model.id, static_cast<int>(layer));
      if (!view) return std::string(view.message());
      const testing::AssertionResult same = model.layers[layer]->still_matches(*view);
      if (!same) return "layer " + std::to_string(layer) + ": " + same.message();
      for (std::int32_t i = 0; i < view->page_count; ++i)
        elements +=
            view->pages[i].tokens * static_cast<std::int64_t>(view->shape.elements_per_token());
    }
    if (cache_->length(model.id).value() != model.shortest()) return "length is not the shortest";
    return cache_->memory(model.id)->elements == elements ? "" : "memory() miscounts the elements";
  }

  std::string compare_memory() const {
    const std::size_t reserved = cache_->memory().reserved_bytes;
    if (page_memory_.empty() ? reserved != memory_.bytes
                             : reserved - memory_.bytes > page_memory_.size())
      return "reserved_bytes is not what was given";
    if (setup_.options.max_bytes > 0 && reserved > setup_.options.max_bytes)
      return "took more than max_bytes";
    return {};
  }

  Random random_;
  ProgramSetup setup_;
  Plan resolved_;
  CountingAllocator memory_;
  std::vector<std::byte> page_memory_;
  std::optional<KVCache> cache_;
  std::vector<ModelSequence> models_;
};

}  // namespace kvtilt::test
