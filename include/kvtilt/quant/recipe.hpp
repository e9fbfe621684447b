// SPDX-License-Identifier: MIT
/// Recipe names. Grammar: k<bits>[c|t]v<bits>[c|t][:g<key group>,<value group>], bits 1 to 8 or 16;
/// c: per channel, t: per token; by default keys are per channel and values per token. Where values
/// are in the keys (LayerShape::values_in_keys): k<bits>[c|t][:g<group>].
#pragma once

#include <kvtilt/quant/presets.hpp>

#include <string>
#include <string_view>

namespace kvtilt {

namespace detail {

/// Takes a decimal number off the front; -1 if there is none, a leading zero or more than 4 digits.
inline int take_number(std::string_view& text) {
  if (!text.empty() && text.front() == '0') return -1;
  int number = 0;
  std::size_t digits = 0;
  while (digits < text.size() && digits <= 4 && text[digits] >= '0' && text[digits] <= '9')
    number = number * 10 + (text[digits++] - '0');
  text.remove_prefix(digits);
  return digits == 0 || digits > 4 ? -1 : number;
}

inline bool take_char(std::string_view& text, char expected) {
  if (text.empty() || text.front() != expected) return false;
  text.remove_prefix(1);
  return true;
}

inline bool take_width(std::string_view& text, char tensor, Granularity granularity,
                       Format& format) {
  if (!take_char(text, tensor)) return false;
  const int bits = take_number(text);
  if (!is_storage_width(bits)) return false;
  if (take_char(text, 'c'))
    granularity = Granularity::PerChannel;
  else if (take_char(text, 't'))
    granularity = Granularity::PerToken;
  format = bits == half_bits ? Format{} : Format{bits, granularity, 0, default_rule(bits)};
  return true;
}

inline bool take_groups(std::string_view& text, Recipe& recipe) {
  if (text.empty()) return true;
  if (!take_char(text, ':') || !take_char(text, 'g')) return false;
  const int key_group = take_number(text);
  if (key_group <= 0) return false;
  if (recipe.key.quantized()) recipe.key.group = key_group;
  if (recipe.value == in_keys) return text.empty();
  if (!take_char(text, ',')) return false;
  const int value_group = take_number(text);
  if (value_group <= 0) return false;
  if (recipe.value.quantized()) recipe.value.group = value_group;
  return text.empty();
}

}  // namespace detail

/// Parses a recipe name or the name of a preset ("kivi2").
///
/// Fails  InvalidArgument  states the grammar
inline Result<Recipe> parse_recipe(std::string_view name) {
  for (const presets::Named& preset : presets::all)
    if (name == preset.name) return preset.recipe;
  std::string_view rest = name;
  Recipe recipe;
  if (detail::take_width(rest, 'k', Granularity::PerChannel, recipe.key)) {
    const bool keys_alone = !rest.starts_with('v');
    if (keys_alone) recipe.value = in_keys;
    if ((keys_alone || detail::take_width(rest, 'v', Granularity::PerToken, recipe.value)) &&
        detail::take_groups(rest, recipe))
      return recipe;
  }
  return Status::error(ErrorCode::InvalidArgument,
                       "recipe '%.*s' does not exist: expected k<bits>v<bits>, for example k4v2, "
                       "k4tv4:g64,64 or kivi2; bits are 1 to 8 or 16, c (per channel) or t (per "
                       "token) may follow a width, :g<key group>,<value group> may follow both; "
                       "k8 or k4t:g64 where values are in the keys",
                       static_cast<int>(name.size() < 64 ? name.size() : 64), name.data());
}

/// The shortest name that parses back to the same recipe. Two things have no name: rules other than
/// the default ones are left out, and a group set for one tensor alone is named for both.
inline std::string to_string(const Recipe& recipe) {
  const auto width = [](char tensor, const Format& format, Granularity usual) {
    std::string text = tensor + std::to_string(format.bits);
    if (format.quantized() && format.granularity != usual)
      text += format.granularity == Granularity::PerChannel ? 'c' : 't';
    return text;
  };
  std::string name = width('k', recipe.key, Granularity::PerChannel);
  if (recipe.value == in_keys)
    return recipe.key.group > 0 ? name + ":g" + std::to_string(recipe.key.group) : name;
  name += width('v', recipe.value, Granularity::PerToken);
  const int key_group = recipe.key.group > 0 ? recipe.key.group : recipe.value.group;
  const int value_group = recipe.value.group > 0 ? recipe.value.group : recipe.key.group;
  if (key_group > 0) name += ":g" + std::to_string(key_group) + "," + std::to_string(value_group);
  return name;
}

}  // namespace kvtilt
