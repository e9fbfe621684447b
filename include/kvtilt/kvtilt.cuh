// SPDX-License-Identifier: MIT
/// Everything an engine needs on the CPU and on GPUs.
#pragma once

#include <kvtilt/cuda/attend.cuh>
#include <kvtilt/cuda/convert_page.hpp>
#include <kvtilt/cuda/kv_cache.cuh>
#include <kvtilt/cuda/page_tables.cuh>
#include <kvtilt/kvtilt.hpp>
