// SPDX-License-Identifier: MIT
/// One work item of an attention launch, to test parts of the kernel: up to 8 query rows of a kv
/// head.
#pragma once

#include <kvtilt/cuda/attention/query.hpp>

#include "support/rows.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

namespace kvtilt::test {

/// Column and outer index of element e of a lane's four sums.
inline int column_of(int lane, int e) { return lane % 4 * 2 + e % 2; }
inline int outer_of(int lane, int e) { return lane / 4 * 2 + e / 2; }

struct AttendItem {
  Rows<float> queries;  ///< [newest tokens, query heads of one kv head, key_dim]
  cuda::AttendArguments arguments{};
  cuda::ItemRows rows{};

  AttendItem(Rows<float> queries_, std::int64_t length) : queries(std::move(queries_)) {
    arguments.layer.kv_heads = 1;
    arguments.layer.key_dim = queries.dim;
    arguments.rows.each = static_cast<int>(queries.tokens);
    arguments.query_heads = queries.heads;
    arguments.gqa_ratio = queries.heads;
    arguments.query = queries.data.data();
    arguments.query_type = ElementType::F32;
    arguments.query_token_stride = queries.heads * queries.dim;
    arguments.query_head_stride = queries.dim;
    arguments.rules.scale = 0.125f;
    arguments.rules.end_position = std::numeric_limits<std::int64_t>::max();
    rows.queries = rows.new_tokens = arguments.rows.each;
    rows.rows = std::min(cuda::item_rows, all_rows());
    rows.length = length;
  }
  AttendItem(const AttendItem&) = delete;

  [[nodiscard]] int all_rows() const { return arguments.rows.each * arguments.gqa_ratio; }
  [[nodiscard]] const float* query(int column) const {
    return &queries.at(column / queries.heads, column % queries.heads, 0);
  }
  [[nodiscard]] std::int64_t position(int column) const {
    return rows.length - queries.tokens + column / queries.heads;
  }
};

}  // namespace kvtilt::test
