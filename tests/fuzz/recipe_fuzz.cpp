// SPDX-License-Identifier: MIT
/// Any bytes give a recipe or an error; the recipe's name parses to the same recipe.
#include <kvtilt/quant/recipe.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string_view name(reinterpret_cast<const char*>(bytes), size);
  const kvtilt::Result<kvtilt::Recipe> recipe = kvtilt::parse_recipe(name);
  if (!recipe) {
    if (recipe.code() != kvtilt::ErrorCode::InvalidArgument || recipe.message().empty())
      std::abort();
    return 0;
  }
  const kvtilt::Result<kvtilt::Recipe> again = kvtilt::parse_recipe(kvtilt::to_string(*recipe));
  if (!again || *again != *recipe) std::abort();
  return 0;
}
