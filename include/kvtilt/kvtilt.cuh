// SPDX-License-Identifier: MIT
/// Everything an engine needs on the CPU and on GPUs.
#pragma once

#include <kvtilt/cuda/attention/attend.cuh>
#include <kvtilt/cuda/attention/attend_prefill.cuh>
#include <kvtilt/cuda/attention/merge_outputs.cuh>
#include <kvtilt/cuda/cache/kv_cache.cuh>
#include <kvtilt/cuda/cache/pack_pages.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/kvtilt.hpp>
