// SPDX-License-Identifier: MIT
/// Includes the whole CPU half: the quantized KVCache and attention over it.
#pragma once

#include <kvtilt/attention/attend.hpp>
#include <kvtilt/attention/attend_memory.hpp>
#include <kvtilt/attention/attend_prefill.hpp>
#include <kvtilt/attention/merge.hpp>
#include <kvtilt/attention/prefill_memory.hpp>
#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cache/layer_pages.hpp>
#include <kvtilt/cache/memory_plan.hpp>
#include <kvtilt/cache/unpack.hpp>
#include <kvtilt/quant/hadamard.hpp>
#include <kvtilt/quant/recipe.hpp>
