// SPDX-License-Identifier: MIT
/// Checks that tensors have the shape of a layer's rows; caches in host and device memory share these
/// checks and their messages.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>

#include <cstdint>

namespace kvtilt {

namespace detail {

/// InvalidArgument unless elements have a type that can be read: a cast from another library's numbers
/// can give any.
inline Status check_type(ElementType type, const char* name, int layer) {
  if (is_element_type(type)) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "%s%s have element type %d, which is none of f32 (%d), f16 (%d), bf16 (%d)",
                       LayerName(layer).text, name, static_cast<int>(type),
                       static_cast<int>(ElementType::F32), static_cast<int>(ElementType::F16),
                       static_cast<int>(ElementType::BF16));
}

/// Whether a caller passes these rows, or wants them; {} says that it does not.
inline bool is_wanted(const TensorView& rows) {
  return rows.data != nullptr || rows.tokens != 0 || rows.heads != 0 || rows.dim != 0;
}

/// Whether rows are [n, heads, dim] for some n.
inline bool has_shape(const TensorView& rows, int heads, int dim) {
  return rows.tokens >= 0 && rows.heads == heads && rows.dim == dim;
}

inline bool has_memory(const TensorView& rows) { return rows.tokens == 0 || rows.data != nullptr; }

/// InvalidArgument unless keys and values have this layer's shape and the same number of tokens.
/// Values that are in the keys must be {}.
inline Status check_rows(const LayerShape& shape, const TensorView& keys, const TensorView& values,
                         int layer) {
  const bool alone = shape.values_in_keys;
  const bool good_keys = has_shape(keys, shape.kv_heads, shape.key_dim);
  if (alone && is_wanted(values))
    return Status::error(
        ErrorCode::InvalidArgument,
        "%svalues are given, [%lld, %d, %d], but are in this layer's keys: pass {}",
        LayerName(layer).text, static_cast<long long>(values.tokens), values.heads, values.dim);
  if (alone && !good_keys)
    return Status::error(ErrorCode::InvalidArgument,
                         "%skeys are [%lld, %d, %d]; expected [n, %d, %d]", LayerName(layer).text,
                         static_cast<long long>(keys.tokens), keys.heads, keys.dim, shape.kv_heads,
                         shape.key_dim);
  if (!alone && !(good_keys && has_shape(values, shape.kv_heads, shape.value_dim) &&
                  keys.tokens == values.tokens))
    return Status::error(
        ErrorCode::InvalidArgument,
        "%skeys are [%lld, %d, %d] and values [%lld, %d, %d]; expected [n, %d, %d] and "
        "[n, %d, %d]",
        LayerName(layer).text, static_cast<long long>(keys.tokens), keys.heads, keys.dim,
        static_cast<long long>(values.tokens), values.heads, values.dim, shape.kv_heads,
        shape.key_dim, shape.kv_heads, shape.value_dim);
  if (!has_memory(keys) || !has_memory(values))
    return Status::error(ErrorCode::InvalidArgument, "%s%s are null", LayerName(layer).text,
                         alone ? "keys" : "keys or values");
  KVTILT_RETURN_IF_ERROR(check_type(keys.type, "keys", layer));
  return alone ? Status{} : check_type(values.type, "values", layer);
}

/// InvalidArgument unless queries and output, [tokens, heads, dim], fit this layer and each other.
inline Status check_queries(const LayerShape& shape, const TensorView& queries,
                            std::int64_t out_tokens, int out_heads, int out_dim, const void* out) {
  if (queries.tokens < 0 || queries.dim != shape.key_dim || queries.heads <= 0 ||
      queries.heads % shape.kv_heads != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "queries are [%lld, %d, %d]; expected [n, a multiple of %d kv heads, %d]",
                         static_cast<long long>(queries.tokens), queries.heads, queries.dim,
                         shape.kv_heads, shape.key_dim);
  if (out_tokens != queries.tokens || out_heads != queries.heads || out_dim != shape.value_dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "the output is [%lld, %d, %d]; expected [%lld, %d, %d]",
                         static_cast<long long>(out_tokens), out_heads, out_dim,
                         static_cast<long long>(queries.tokens), queries.heads, shape.value_dim);
  if (queries.tokens > 0 && (queries.data == nullptr || out == nullptr))
    return Status::error(ErrorCode::InvalidArgument, "queries or output are null");
  return check_type(queries.type, "queries", unnumbered_layer);
}

inline bool fits(const TensorView& rows, std::int64_t tokens, int heads, int dim) {
  return !is_wanted(rows) || (rows.tokens == tokens && rows.heads == heads && rows.dim == dim &&
                              (rows.data != nullptr || tokens == 0));
}

/// The number of tokens to unpack; InvalidArgument unless all wanted rows have this layer's shape.
inline Result<std::int64_t> check_wanted_rows(const LayerShape& shape, const TensorView& keys,
                                              const TensorView& values, int layer) {
  const std::int64_t tokens = is_wanted(keys) ? keys.tokens : values.tokens;
  if (tokens < 0 || !fits(keys, tokens, shape.kv_heads, shape.key_dim) ||
      !fits(values, tokens, shape.kv_heads, shape.value_dim))
    return Status::error(ErrorCode::InvalidArgument,
                         "%skeys go to [%lld, %d, %d] at %p and values to [%lld, %d, %d] at %p; "
                         "expected [n, %d, %d] and [n, %d, %d], or {} for what is not wanted",
                         LayerName(layer).text, static_cast<long long>(keys.tokens), keys.heads,
                         keys.dim, keys.data, static_cast<long long>(values.tokens), values.heads,
                         values.dim, values.data, shape.kv_heads, shape.key_dim, shape.kv_heads,
                         shape.value_dim);
  if (is_wanted(keys)) KVTILT_RETURN_IF_ERROR(check_type(keys.type, "keys", layer));
  if (is_wanted(values)) KVTILT_RETURN_IF_ERROR(check_type(values.type, "values", layer));
  return tokens;
}

}  // namespace detail
}  // namespace kvtilt
