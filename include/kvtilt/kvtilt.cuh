// SPDX-License-Identifier: MIT
/// Everything an engine needs on the CPU and on GPUs.
#pragma once

#include <kvtilt/cuda/threads.cuh>
#include <kvtilt/kvtilt.hpp>
