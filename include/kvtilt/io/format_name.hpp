// SPDX-License-Identifier: MIT
/// The text form of one tensor's format in recipe files: <bits><c|t>[:g<group>][:<rule>], or 16. c
/// is per channel, t per token. Without a group it means the default group, without a rule the
/// default rule of the width. Unlike recipe names (quant/recipe.hpp) it can state every field:
/// 4c:g64:min-mse, 8t:min-max, 16. Values that are in the keys have the format "in-keys".
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/shown.hpp>
#include <kvtilt/quant/format.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>

namespace kvtilt {

/// parse_format() gives the same format back if the width is valid and the group is not negative.
inline std::string to_string(const Format& format) {
  if (format == Format{}) return "16";
  if (format == in_keys) return "in-keys";
  std::string text = std::to_string(format.bits);
  text += format.granularity == Granularity::PerChannel ? 'c' : 't';
  if (format.group != 0) text += ":g" + std::to_string(format.group);
  return text + ":" + to_string(format.rule);
}

/// Parses a format. Fails with InvalidArgument; the message states the grammar.
inline Result<Format> parse_format(std::string_view name) {
  const auto fail = [&] {
    return Status::error(ErrorCode::InvalidArgument,
                         "format '%s' does not exist: expected 16, in-keys, or <bits><c|t>"
                         "[:g<group>][:<rule>], for example 4c:g64:min-mse or 8t; bits are 1 to 8, "
                         "rules min-max, min-mse and centroids",
                         shown(name, 40).c_str());
  };
  if (name == "16") return Format{};
  if (name == "in-keys") return in_keys;
  std::string_view rest = name;
  Format format;
  format.bits = detail::take_number(rest);
  if (!is_storage_width(format.bits)) return fail();
  if (detail::take_char(rest, 'c'))
    format.granularity = Granularity::PerChannel;
  else if (!detail::take_char(rest, 't'))
    return fail();
  if (rest.starts_with(":g")) {
    rest.remove_prefix(2);
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), format.group);
    if (error != std::errc{} || format.group <= 0 || rest.front() == '0') return fail();
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  }
  if (rest.empty()) {
    format.rule = default_rule(format.bits);
    return format;
  }
  if (!detail::take_char(rest, ':')) return fail();
  for (const RangeRule rule : {RangeRule::MinMax, RangeRule::MinMse, RangeRule::Centroids}) {
    if (rest != to_string(rule)) continue;
    format.rule = rule;
    return format;
  }
  return fail();
}

}  // namespace kvtilt
