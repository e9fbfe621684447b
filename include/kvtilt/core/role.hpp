// SPDX-License-Identifier: MIT
/// Keys or values.
#pragma once

#include <cstdint>

namespace kvtilt {

/// Which of a head's two tensors.
enum class Role : std::uint8_t { Keys, Values };

constexpr const char* to_string(Role role) { return role == Role::Keys ? "keys" : "values"; }

}  // namespace kvtilt
