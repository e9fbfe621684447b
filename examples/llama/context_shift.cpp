// SPDX-License-Identifier: MIT
#include "context_shift.hpp"

#include <kvtilt/page/token_placement.hpp>

#include "fail.hpp"

#include <algorithm>

namespace llama {
namespace {

/// Pages to remove from a full context: half of what is not kept, as far as it is sealed.
int pages_to_remove(const ModelConfig& config, const ContextShift& shift) {
  const int page = shift.cache.page_tokens;
  const int behind = config.context - kept_tokens(shift);
  const int sealed = (behind - shift.cache.recent_tokens) / page;
  return std::min(sealed, std::max(1, behind / 2 / page));
}

}  // namespace

int kept_tokens(const ContextShift& shift) {
  const int page = shift.cache.page_tokens;
  const int beyond = std::max(0, shift.keep - shift.cache.sink_tokens);
  return shift.cache.sink_tokens + (beyond + page - 1) / page * page;
}

void check_shift(const ModelConfig& config, const ContextShift& shift) {
  const CacheSettings& cache = shift.cache;
  const kvtilt::Status valid =
      kvtilt::check_placement({cache.page_tokens, cache.sink_tokens, cache.recent_tokens});
  if (!valid.ok()) fail(valid.message());
  if (std::any_of(config.windows.begin(), config.windows.end(), [](int w) { return w > 0; })) {
    fail("the context of a model with sliding windows cannot be shifted");
  }
  if (shift.keep < 0 || shift.keep > config.context || pages_to_remove(config, shift) < 1) {
    fail("a context of ", config.context, " tokens holds no page of ", shift.cache.page_tokens,
         " to remove beside the first ", std::max(shift.keep, shift.cache.sink_tokens),
         " and a tail of ", shift.cache.recent_tokens);
  }
}

int make_room(const ModelConfig& config, const std::optional<ContextShift>& shift,
              AttentionCache& cache) {
  if (shift && cache.kept() >= config.context) {
    const int from = kept_tokens(*shift) + cache.removed();
    cache.remove(from, from + pages_to_remove(config, *shift) * shift->cache.page_tokens);
  }
  return config.context - cache.kept();
}

}  // namespace llama
