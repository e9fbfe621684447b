// SPDX-License-Identifier: MIT
// Random programs of everything a cache can be asked, on many sequences and shapes, against a model
// that re-derives sealing, groups and windows on its own. KVTILT_SEED repeats one program,
// KVTILT_FULL=1 runs ten times as many.
#include <kvtilt/cache/kv_cache.hpp>

#include "support/attend_check.hpp"
#include "support/caches.hpp"
#include "support/counting_allocator.hpp"
#include "support/layer_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::LayerModel;
using test::Random;
using test::Rows;

struct Step {
  enum Kind { Open, Reserve, Append, Truncate, Fork, Remove, Close, Attend } kind;
  int which;  ///< picks a sequence
  int layer;
  int amount;
  std::uint64_t seed;
};

const char* const step_names[] = {"open", "reserve", "append", "truncate",
                                  "fork", "remove",  "close",  "attend"};

struct Setup {
  CacheShape shape;
  Plan plan;
  CacheOptions options;

  explicit Setup(Random& random) {
    options.page_tokens = 32 << random.below(2);
    options.sink_tokens = test::pick(random, {0, 1, 4, 17});
    options.recent_tokens = test::pick(random, {0, 1, 20, 64, 90});
    options.max_sequences = 5;
    const std::vector<Isa> isas = test::usable_isas();
    options.isa = isas[static_cast<std::size_t>(random.below(static_cast<int>(isas.size())))];
    const int layers = random.between(1, 3);
    for (int layer = 0; layer < layers; ++layer) {
      LayerShape own{random.between(1, 2), 8 * random.between(1, 4), 8 * random.between(1, 4)};
      if (random.chance(3)) own.window = random.between(1, 150);
      own.keep_sinks = random.chance(2);
      if (layer > 0 && random.chance(6)) own = {};
      shape.layers.push_back(own);
      std::vector<Recipe> recipes;
      for (int head = 0; head < std::max(1, own.kv_heads); ++head)
        recipes.push_back(
            {test::random_format(random, std::max(8, own.key_dim), options.page_tokens),
             test::random_format(random, std::max(8, own.value_dim), options.page_tokens)});
      plan.recipes.push_back(recipes);
    }
  }
};

/// One sequence as the model sees it.
struct Model {
  SequenceId id;
  std::vector<std::optional<LayerModel>> layers;
  std::int64_t capacity = 0;
};

class Run {
 public:
  explicit Run(std::uint64_t seed) : random_(seed), setup_(random_) {
    setup_.options.allocator = memory_.get();
    cache_.emplace(test::make_cache(setup_.shape, setup_.plan, setup_.options));
    resolved_ = resolve_plan(setup_.plan, setup_.shape, setup_.options.page_tokens).value();
  }

  /// Empty, or what went wrong.
  std::string play(const std::vector<Step>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      std::string wrong = play(steps[i]);
      for (std::size_t s = 0; wrong.empty() && s < models_.size(); ++s) wrong = compare(models_[s]);
      if (wrong.empty() && cache_->memory().reserved_bytes != memory_.bytes)
        wrong = "reserved_bytes is not what the allocator gave";
      if (!wrong.empty()) return "step " + std::to_string(i) + ": " + wrong;
    }
    return {};
  }

 private:
  std::string play(const Step& step) {
    if (step.kind == Step::Open) return open();
    if (models_.empty()) return {};
    Model& model = models_[static_cast<std::size_t>(step.which) % models_.size()];
    Random random(step.seed);
    switch (step.kind) {
      case Step::Open:
        break;
      case Step::Reserve:
        return reserve(model, step.amount);
      case Step::Append:
        return append(model, step, random);
      case Step::Truncate:
        return truncate(model, step, random);
      case Step::Fork:
        return fork(model, step.amount);
      case Step::Remove:
        return remove(model, random);
      case Step::Close:
        return close(model);
      case Step::Attend:
        return attend(model, step, random);
    }
    return {};
  }

  std::string open() {
    const Result<SequenceId> id = cache_->open();
    if (models_.size() == 5) return id.ok() ? "opened a sixth of five sequences" : "";
    if (!id) return std::string(id.message());
    Model model;
    model.id = *id;
    for (std::size_t layer = 0; layer < setup_.shape.layers.size(); ++layer) {
      const LayerShape& shape = setup_.shape.layers[layer];
      model.layers.emplace_back();
      if (shape.kv_heads == 0) continue;
      std::vector<Recipe> recipes = resolved_.recipes[layer];
      recipes.resize(static_cast<std::size_t>(shape.kv_heads), recipes[0]);
      model.layers.back().emplace(shape, recipes, setup_.options.page_tokens,
                                  setup_.options.sink_tokens, setup_.options.recent_tokens);
    }
    models_.push_back(model);
    return {};
  }

  std::string reserve(Model& model, int tokens) {
    const Status status = cache_->reserve(model.id, tokens);
    model.capacity = std::max<std::int64_t>(model.capacity, tokens);
    return std::string(status.message());
  }

  std::string append(Model& model, const Step& step, Random& random) {
    const std::size_t layer = static_cast<std::size_t>(step.layer) % model.layers.size();
    if (!model.layers[layer]) return {};
    LayerModel& own = *model.layers[layer];
    const LayerShape& shape = setup_.shape.layers[layer];
    const Rows<float> keys = test::random_rows(random, step.amount, shape.kv_heads, shape.key_dim);
    const Rows<float> values =
        test::random_rows(random, step.amount, shape.kv_heads, shape.value_dim);
    Status status = cache_->append(model.id, static_cast<int>(layer), keys.view(), values.view());
    const bool room = own.length() + step.amount <= model.capacity;
    if (status.code() == ErrorCode::OutOfCapacity) {
      if (room && std::string(status.message()).find("reserve again") == std::string::npos)
        return "refused what was reserved";
      if (!room) return {};
      // A cut or a fork cost a page: reserving again must help.
      if (Status again = cache_->reserve(model.id, model.capacity); !again.ok())
        return std::string(again.message());
      status = cache_->append(model.id, static_cast<int>(layer), keys.view(), values.view());
    }
    if (!status.ok()) return std::string(status.message());
    if (!room) return "accepted more than was reserved";
    own.append(keys, values);
    return {};
  }

  std::string truncate(Model& model, const Step& step, Random& random) {
    std::int64_t longest = 0;
    for (const auto& own : model.layers)
      if (own) longest = std::max(longest, own->length());
    const std::int64_t length = random.chance(3) ? random.below(static_cast<int>(longest) + 2)
                                                 : std::max<std::int64_t>(0, longest - step.amount);
    bool refused = false;
    for (const auto& own : model.layers)
      refused = refused || (own && own->refuses_truncation(length));
    const Status status = cache_->truncate(model.id, length);
    if (status.ok() == refused)
      return "truncate(" + std::to_string(length) + ") " + (refused ? "worked" : "failed");
    for (auto& own : model.layers)
      if (own && !refused) own->truncate(length);
    return {};
  }

  std::string fork(Model& model, int tokens) {
    bool in_step = true;
    std::int64_t length = -1;
    for (const auto& own : model.layers) {
      if (!own) continue;
      in_step = in_step && (length < 0 || own->length() == length);
      length = own->length();
    }
    const Result<SequenceId> id = cache_->fork(model.id, tokens);
    if (id.ok() != (in_step && models_.size() < 5)) return "fork: " + std::string(id.message());
    if (!id) return {};
    Model child = model;
    child.id = *id;
    child.capacity = std::max<std::int64_t>(length, tokens);
    models_.push_back(child);
    return {};
  }

  std::string remove(Model& model, Random& random) {
    const std::int64_t page = setup_.options.page_tokens;
    const std::int64_t from = setup_.options.sink_tokens + page * random.below(6);
    const std::int64_t to = from + page * random.between(1, 2) - (random.chance(5) ? 3 : 0);
    std::vector<std::optional<LayerModel>> after = model.layers;
    bool works = true;
    for (auto& own : after) works = works && (!own || own->remove(from, to));
    const Status status = cache_->remove(model.id, from, to);
    if (status.ok() != works) return "remove: " + std::string(status.message());
    if (works) model.layers = after;
    return {};
  }

  std::string close(Model& model) {
    const SequenceId id = model.id;
    const Status status = cache_->close(id);
    models_.erase(models_.begin() + (&model - models_.data()));
    if (cache_->length(id).ok()) return "a closed sequence still answers";
    return std::string(status.message());
  }

  std::string attend(Model& model, const Step& step, Random& random) {
    const std::size_t layer = static_cast<std::size_t>(step.layer) % model.layers.size();
    if (!model.layers[layer]) return {};
    const LayerView view = cache_->view(model.id, static_cast<int>(layer)).value();
    const int most = static_cast<int>(std::min<std::int64_t>(
        view.length, std::max(1, std::min(setup_.options.recent_tokens, 6))));
    if (most == 0) return {};
    const Rows<float> queries =
        test::random_queries(random, view.shape, random.between(1, most), random.between(1, 3));
    test::Output output(queries.tokens, queries.heads, view.shape.value_dim);
    std::vector<std::byte> workspace(attend_workspace_bytes(view), std::byte{0xff});
    const Status status = kvtilt::attend(view, queries.view(), output.view(), {}, workspace);
    const std::int64_t oldest = view.length - queries.tokens - view.shape.window + 1;
    const bool lost = view.shape.window > 0 &&  // only a truncation can bring this about
                      std::max<std::int64_t>(0, oldest) < model.layers[layer]->freed_until();
    if (status.ok() == lost) return "attend: " + std::string(status.message());
    if (lost) return {};
    const testing::AssertionResult kept = test::follows_oracle(view, queries, {}, output, 8.0);
    return kept ? "" : kept.message();
  }

  std::string compare(const Model& model) const {
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      if (!model.layers[layer]) continue;
      const Result<LayerView> view = cache_->view(model.id, static_cast<int>(layer));
      if (!view) return std::string(view.message());
      const testing::AssertionResult same = model.layers[layer]->matches(*view);
      if (!same) return "layer " + std::to_string(layer) + ": " + same.message();
    }
    return {};
  }

  Random random_;
  Setup setup_;
  Plan resolved_;
  test::CountingAllocator memory_;
  std::optional<KVCache> cache_;
  std::vector<Model> models_;
};

std::vector<Step> random_program(std::uint64_t seed, int count) {
  Random random(seed ^ 0x5eed);
  std::vector<Step> steps = {{Step::Open, 0, 0, 0, 0}, {Step::Reserve, 0, 0, 400, 0}};
  constexpr Step::Kind kinds[] = {
      Step::Open,   Step::Reserve,  Step::Reserve, Step::Append, Step::Append, Step::Append,
      Step::Append, Step::Append,   Step::Append,  Step::Append, Step::Append, Step::Truncate,
      Step::Fork,   Step::Truncate, Step::Remove,  Step::Close,  Step::Attend, Step::Attend};
  while (static_cast<int>(steps.size()) < count) {
    const Step::Kind kind = kinds[random.below(static_cast<int>(std::size(kinds)))];
    int amount = random.between(0, 40);
    if (kind == Step::Reserve || kind == Step::Fork) amount = random.between(0, 500);
    if (kind == Step::Append && random.chance(3)) amount = random.between(0, 200);
    const Step step{kind, random.below(5), random.below(6), amount, random.next()};
    steps.push_back(step);
    if (kind == Step::Append && random.chance(2))  // often, all layers go in step
      for (int layer = step.layer + 1; layer < step.layer + 3; ++layer)
        steps.push_back({kind, step.which, layer, amount, random.next()});
  }
  return steps;
}

/// Leaves out whatever the failure does not need.
std::vector<Step> shrink(std::uint64_t seed, std::vector<Step> steps) {
  for (std::size_t chunk = steps.size() / 2; chunk > 0; chunk /= 2)
    for (std::size_t at = 0; at + chunk <= steps.size();) {
      std::vector<Step> fewer = steps;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at),
                  fewer.begin() + static_cast<std::ptrdiff_t>(at + chunk));
      if (Run(seed).play(fewer).empty())
        at += chunk;
      else
        steps = fewer;
    }
  return steps;
}

void check_program(std::uint64_t seed, int count) {
  std::vector<Step> steps = random_program(seed, count);
  if (Run(seed).play(steps).empty()) return;
  steps = shrink(seed, steps);
  std::ostringstream text;
  for (const Step& step : steps)
    text << "  " << step_names[step.kind] << " sequence " << step.which << ", layer " << step.layer
         << ", amount " << step.amount << '\n';
  ADD_FAILURE() << "KVTILT_SEED=" << seed << ": " << Run(seed).play(steps) << '\n' << text.str();
}

// Unoptimized or instrumented, a program takes ten times as long.
#if !defined(__OPTIMIZE__)
constexpr int usual_programs = 60;
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int usual_programs = 60;
#elif defined(__clang__)  // -fsanitize=undefined cannot be asked for
constexpr int usual_programs = 60;
#else
constexpr int usual_programs = 840;  // 100,000 steps
#endif

TEST(KVCacheProgramRandom, FollowsTheModelAfterEveryStep) {
  constexpr int steps = 120;
  if (const char* seed = std::getenv("KVTILT_SEED")) {
    check_program(std::strtoull(seed, nullptr, 10), steps);
    return;
  }
  const char* wanted = std::getenv("KVTILT_PROGRAMS");
  const int programs = wanted != nullptr                       ? std::atoi(wanted)
                       : std::getenv("KVTILT_FULL") != nullptr ? 10 * usual_programs
                                                               : usual_programs;
  for (int seed = 0; seed < programs && !testing::Test::HasFailure(); ++seed)
    check_program(static_cast<std::uint64_t>(seed), steps);
}

}  // namespace
}  // namespace kvtilt
