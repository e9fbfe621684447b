// SPDX-License-Identifier: MIT
#include "probes.hpp"

#include "kvtilt_cache.hpp"

namespace llama {

using kvtilt::Role;

std::vector<kvtilt::Divergence> measure_probes(const Model& model,
                                               const std::vector<std::vector<int>>& pieces,
                                               const kvtilt::FormatChoices& formats,
                                               kvtilt::RecipePer per,
                                               const DivergenceOptions& options) {
  const kvtilt::CacheShape shape = cache_shape(model.config());
  const kvtilt::Plan base = kvtilt::Plan::uniform(shape, kvtilt::Recipe{});
  std::vector<kvtilt::Divergence> probes;
  std::vector<kvtilt::Plan> plans;
  const bool heads = per == kvtilt::RecipePer::Head;
  for (int layer = 0; layer < model.config().layers; ++layer) {
    for (int head = heads ? 0 : -1; head < (heads ? model.config().kv_heads : 0); ++head) {
      for (const Role tensor : {Role::Keys, Role::Values}) {
        const bool keys = tensor == Role::Keys;
        for (const kvtilt::Format& format : keys ? formats.keys : formats.values) {
          probes.push_back({layer, head, tensor, format, 0});
          auto& recipes = plans.emplace_back(base).recipes[static_cast<std::size_t>(layer)];
          if (heads) recipes.resize(static_cast<std::size_t>(model.config().kv_heads));
          kvtilt::Recipe& recipe = recipes[heads ? static_cast<std::size_t>(head) : 0];
          (keys ? recipe.key : recipe.value) = format;
        }
      }
    }
  }
  const Divergences measured = measure_divergence(model, pieces, base, plans, options);
  for (std::size_t i = 0; i < probes.size(); ++i) probes[i].kl = measured.plans[i];
  return probes;
}

}  // namespace llama
