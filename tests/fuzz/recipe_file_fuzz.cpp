// SPDX-License-Identifier: MIT
/// Any text gives recipes or an error; recipes that are written and read back are the same, and are
/// written the same again.
#include <kvtilt/io/recipe_file.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const auto file = kvtilt::parse_recipe_file(text, "f");
  if (!file) {
    const std::string_view message = file.message();
    if (file.code() != kvtilt::ErrorCode::Corrupt || !message.starts_with("f:")) std::abort();
    return 0;
  }
  const auto written = kvtilt::to_text(*file);
  if (!written) std::abort();
  const auto again = kvtilt::parse_recipe_file(*written, "f");
  if (!again || again->plan.recipes != file->plan.recipes ||
      again->shape.layers != file->shape.layers || again->page_tokens != file->page_tokens ||
      again->made_by != file->made_by || again->budget != file->budget)
    std::abort();
  if (*kvtilt::to_text(*again) != *written) std::abort();
  return 0;
}
