// SPDX-License-Identifier: MIT
#include "planner.hpp"

#include <kvtilt/plan/captured_losses.hpp>
#include <kvtilt/plan/norm_losses.hpp>

#include "fail.hpp"
#include "format_list.hpp"
#include "kvtilt_cache.hpp"
#include "norm_file.hpp"
#include "norm_source.hpp"
#include "pieces.hpp"
#include "probes.hpp"
#include "statistics.hpp"
#include "statistics_file.hpp"
#include "text_file.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace llama {
namespace {

using kvtilt::FormatChoices;
using kvtilt::ModelLosses;

/// The losses of a library call, or its error as an exception.
ModelLosses checked(kvtilt::Result<ModelLosses> losses) {
  if (!losses) fail(losses.message());
  return *std::move(losses);
}

bool from_norms(LossSource source) {
  return source == LossSource::Frobenius || source == LossSource::Spectral;
}

LossSource choose_source(const PlanRequest& request) {
  const bool text = !request.text.empty();
  const bool capture = !request.capture.empty();
  if (!request.norms.empty() && !(request.model.empty() && !text && !capture)) {
    fail("--norms stands alone: it cannot go with --model, --text or --capture");
  }
  if (text && capture) {
    fail("--text and --capture are two ways to the same numbers: give one of them");
  }
  if (text && request.model.empty()) fail("--text needs a model that reads it: give --model");
  if (request.norms.empty() && request.model.empty() && !capture) {
    fail("there is nothing to plan from: give --model, --norms or --capture");
  }
  const LossSource source = request.source.value_or(text      ? LossSource::Measured
                                                    : capture ? LossSource::Statistics
                                                              : LossSource::Spectral);
  if (from_norms(source) && (text || capture)) {
    fail("--from ", to_string(source), " looks at weights alone: it cannot go with ",
         text ? "--text" : "--capture");
  }
  if (source == LossSource::Measured && !text) {
    fail("--from measured runs the model on a text: give --text");
  }
  if (source == LossSource::Statistics && !text && !capture) {
    fail("--from statistics needs what a model keeps while it reads: give --text or --capture");
  }
  if (from_norms(source) && request.norms.empty() && request.model.empty()) {
    fail("--from ", to_string(source), " needs weights or their norms: give --model or --norms");
  }
  return source;
}

std::vector<std::vector<int>> calibration_pieces(const PlanRequest& request, const Model& model) {
  const int context = request.context > 0 ? request.context : model.config().context;
  if (context > model.config().context) {
    fail("--context ", context, " is beyond the model's ", model.config().context);
  }
  const std::string text = read_text_file(request.text);
  const auto tokenizer = load_tokenizer(request.model, model.config());
  auto pieces = cut_pieces(split_text(text, request.share).first, *tokenizer, context);
  spread_predictions(pieces, request.tokens);
  if (pieces.empty()) {
    fail(request.text.string(), ": the first ", request.share, " of it is too short to plan from");
  }
  return pieces;
}

/// The formats to choose from. Measuring takes time for each: unless the user gives a list, widths
/// far from the budget are left out; a budget above all widths gets the widest.
FormatChoices choose_formats(const PlanRequest& request, LossSource source,
                             const kvtilt::CacheShape& shape) {
  std::vector<std::string> entries = request.formats;
  if (entries.empty()) {
    const bool near = source == LossSource::Measured;
    for (int bits = 1; bits <= 8; ++bits) {
      const bool useful =
          std::any_of(request.budgets.begin(), request.budgets.end(), [bits](double budget) {
            const double stored = bits + 0.5;  // half a bit goes to scales and minima
            return std::abs(stored - budget) <= 2 || (bits == 8 && budget > stored);
          });
      if (!near || useful) entries.push_back(std::to_string(bits));
    }
  }
  return parse_formats(entries, from_norms(source) ? Variants::Default : Variants::All, shape,
                       request.page_tokens);
}

/// The formats of the `count` widths around the middle of the choices, as probes for all widths.
FormatChoices choose_probes(const FormatChoices& choices, int count) {
  if (count == 0) return choices;
  const auto pick = [count](const std::vector<kvtilt::Format>& formats) {
    std::vector<int> widths;
    for (const kvtilt::Format& format : formats) widths.push_back(format.bits);
    std::sort(widths.begin(), widths.end());
    widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
    std::vector<kvtilt::Format> probes;
    const auto have = static_cast<int>(widths.size());
    for (int i = 0; i < std::min(count, have); ++i) {
      const int place = (2 * i + 1) * have / (2 * std::min(count, have));
      const int width = widths[static_cast<std::size_t>(place)];
      probes.push_back(*std::find_if(formats.begin(), formats.end(),
                                     [&](const auto& format) { return format.bits == width; }));
    }
    return probes;
  };
  return {pick(choices.keys), pick(choices.values)};
}

/// Runs the model on the text, for the two loss sources that need it.
class TextLosses {
 public:
  explicit TextLosses(const PlanRequest& request)
      : request_(request),
        model_(request.model, request.transforms),
        shape_(cache_shape(model_.config())),
        pieces_(calibration_pieces(request, model_)) {}

  [[nodiscard]] const kvtilt::CacheShape& shape() const { return shape_; }

  [[nodiscard]] std::vector<kvtilt::CapturedLayer> capture() const {
    StatisticsOptions options;
    options.page_tokens = request_.page_tokens;
    options.most_tokens = request_.tokens;
    options.threads = request_.threads;
    options.progress = progress("capturing");
    return capture_statistics(model_, pieces_, options);
  }

  [[nodiscard]] ModelLosses measure(const FormatChoices& choices) const {
    check_some_read_codes();
    DivergenceOptions options;
    options.cache.page_tokens = request_.page_tokens;
    options.cache.recent_tokens = request_.tail;
    options.cache.sink_tokens = request_.sinks;
    options.threads = request_.threads;
    options.progress = progress("measuring");
    const auto probes = measure_probes(model_, pieces_, choose_probes(choices, request_.probes),
                                       request_.per, options);
    std::vector<kvtilt::CapturedLayer> captured;
    if (request_.probes > 0) captured = capture();
    return checked(kvtilt::losses_from_divergence(shape_, request_.page_tokens, choices, probes,
                                                  captured, request_.per));
  }

 private:
  /// Throws if no piece fills a page beyond sinks and tail: codes are read only from the prediction
  /// that fills one.
  void check_some_read_codes() const {
    std::size_t longest = 0;
    for (const auto& piece : pieces_) longest = std::max(longest, piece.size());
    const int unread = request_.sinks + request_.page_tokens + request_.tail;
    if (longest > static_cast<std::size_t>(unread)) return;
    fail(request_.text.string(), ": nothing can be measured with pages of ", request_.page_tokens,
         " tokens, a tail of ", request_.tail, " and ", request_.sinks,
         " sinks: the longest piece has ", longest, " tokens (of --tokens ", request_.tokens,
         " and a context of ", request_.context > 0 ? request_.context : model_.config().context,
         "), ", unread + 1, " are needed");
  }

  [[nodiscard]] std::function<void(double)> progress(const char* what) const {
    if (!request_.progress) return {};
    return [this, what](double share) { request_.progress(what, share); };
  }

  const PlanRequest& request_;
  Model model_;
  kvtilt::CacheShape shape_;
  std::vector<std::vector<int>> pieces_;
};

WeightNorms request_norms(const PlanRequest& request) {
  if (!request.norms.empty()) {
    if (request.per == kvtilt::RecipePer::Head) {
      fail("--per-head needs norms of each head, which ", request.norms.string(), " does not have");
    }
    return read_norm_file(request.norms, request.kv_heads, request.head_dim);
  }
  std::function<void(double)> progress;
  if (request.progress) {
    progress = [&](double share) { request.progress("reading weights", share); };
  }
  if (request.model.empty()) return {};
  return read_weight_norms(request.model, request.threads, progress);
}

kvtilt::CacheShape captured_shape(const std::vector<kvtilt::CapturedLayer>& layers) {
  kvtilt::CacheShape shape;
  for (const kvtilt::CapturedLayer& layer : layers) {
    shape.layers.push_back({layer.kv_heads, layer.key_dim, layer.value_dim, 0});
  }
  return shape;
}

/// Throws if the capture and the model differ in the shape of their caches.
void check_same_heads(const PlanRequest& request, const kvtilt::CacheShape& captured,
                      const kvtilt::CacheShape& model) {
  if (captured.layers.size() != model.layers.size()) {
    fail(request.capture.string(), ": has ", captured.layers.size(), " layers, ",
         request.model.string(), " has ", model.layers.size());
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const kvtilt::LayerShape& found = captured.layers[i];
    const kvtilt::LayerShape& expected = model.layers[i];
    if (found.kv_heads == expected.kv_heads && found.key_dim == expected.key_dim &&
        found.value_dim == expected.value_dim) {
      continue;
    }
    fail(request.capture.string(), ": layer ", i, " has ", found.kv_heads, " kv heads of ",
         found.key_dim, " and ", found.value_dim, " channels (keys, values), ",
         request.model.string(), " has ", expected.kv_heads, " of ", expected.key_dim, " and ",
         expected.value_dim);
  }
}

}  // namespace

std::vector<Planning> run_planner(const PlanRequest& request) {
  const LossSource source = choose_source(request);
  const WeightNorms norms = request_norms(request);
  kvtilt::CacheShape shape = norms.shape;
  ModelLosses losses;
  FormatChoices choices;
  Transforms transforms = request.transforms;
  if (from_norms(source)) {
    choices = choose_formats(request, source, shape);
    losses = checked(kvtilt::losses_from_norms(
        shape, request.page_tokens, choices, norms.layers,
        source == LossSource::Frobenius ? kvtilt::Norm::Frobenius : kvtilt::Norm::Spectral,
        request.per));
  } else if (!request.text.empty()) {
    const TextLosses text(request);
    shape = text.shape();
    choices = choose_formats(request, source, shape);
    losses = source == LossSource::Measured
                 ? text.measure(choices)
                 : checked(kvtilt::losses_from_statistics(shape, request.page_tokens, choices,
                                                          text.capture(), request.per));
  } else {
    const StatisticsFile file = read_statistics(request.capture);
    if (file.page_tokens != request.page_tokens) {
      fail(request.capture.string(), ": was captured for pages of ", file.page_tokens,
           " tokens; --page is ", request.page_tokens);
    }
    shape = captured_shape(file.layers);
    transforms = file.transforms;
    if (!norms.layers.empty()) check_same_heads(request, shape, norms.shape);
    choices = choose_formats(request, source, shape);
    losses = checked(kvtilt::losses_from_statistics(shape, request.page_tokens, choices,
                                                    file.layers, request.per));
  }
  std::vector<Planning> plannings;
  for (const double bits : request.budgets) {
    const kvtilt::BitBudget budget{bits, request.key_floor.value_or(from_norms(source) ? 3 : 0),
                                   request.value_floor.value_or(from_norms(source) ? 2 : 0)};
    plannings.push_back(
        make_planning(source, shape, request.page_tokens, choices, losses, budget, norms));
    plannings.back().transforms = transforms;
  }
  return plannings;
}

}  // namespace llama
