# Every header has a test at the same path. Run from the root: cmake -P tests/compile/mirror.cmake
cmake_minimum_required(VERSION 3.23)

set(bare "")
file(GLOB headers RELATIVE ${CMAKE_SOURCE_DIR}/include/kvtilt include/kvtilt/*/*.hpp
     include/kvtilt/cuda/*/*.hpp)
foreach(header IN LISTS headers)
  string(REGEX REPLACE "\\.hpp$" "_test.cpp" test ${header})
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/tests/${test})
    string(APPEND bare "\n  ${header}: no tests/${test}")
  endif()
endforeach()
if(bare)
  message(FATAL_ERROR "Headers without a test at the same path:${bare}")
endif()
