# For our own tests and examples: enables CUDA in the including folder, or sets kvtilt_cuda_missing
# to what is missing. CMAKE_CUDA_ARCHITECTURES selects the architecture (default: 90).
include(CheckLanguage)
check_language(CUDA)
set(kvtilt_cuda_missing)
if(NOT CMAKE_CUDA_COMPILER)
  set(kvtilt_cuda_missing "CUDA compiler (nvcc in PATH, or CUDACXX)")
  return()
elseif(NOT TARGET kvtilt::cuda)
  set(kvtilt_cuda_missing "CUDA runtime that CMake finds (CUDAToolkit)")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90)
endif()
enable_language(CUDA)

# Without a GPU, device code is compiled but never runs: optimizing it would take up to four fifths
# of the time. tests/compile/kernels checks the optimized code.
include(CheckCompilerFlag)
check_compiler_flag(CUDA -Ofc=max KVTILT_NVCC_COMPILES_FAST)
set(fast_compile)
if(KVTILT_TEST_TOGETHER AND KVTILT_NVCC_COMPILES_FAST AND NOT EXISTS /dev/nvidiactl)
  set(fast_compile -Ofc=max)
endif()
set(KVTILT_UNUSED_DEVICE_CODE ${fast_compile} CACHE INTERNAL "Options of nvcc; consumers have them, too")
