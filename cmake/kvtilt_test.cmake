# kvtilt_test(<path>_test.cpp [LIBRARIES <target>...])
#
# One executable per file under tests/; its ctest names are <path>/<Suite.Test>. A suite or test
# whose name ends in Golden, Hostile, Property, Agreement or Random has that label in lower case, all
# others have the label unit. With KVTILT_TEST_MATRIX the file also runs once per forced instruction
# set, without its random tests.
include(GoogleTest)

# Off where sources are edited: each change to a header would rebuild all tests, and a test that
# forgets an include would compile.
option(KVTILT_TEST_PCH "Compile the headers that tests share once, ahead of them" OFF)

# Where no built GoogleTest fits (cross compilers), Debian's package googletest is its source.
find_package(GTest QUIET)
if(NOT GTest_FOUND)
  set(KVTILT_GTEST_SOURCE /usr/src/googletest CACHE PATH "Source of GoogleTest")
  if(NOT EXISTS ${KVTILT_GTEST_SOURCE}/CMakeLists.txt)
    message(FATAL_ERROR "GoogleTest is missing: install libgtest-dev and libgmock-dev")
  endif()
  set(INSTALL_GTEST OFF)
  add_subdirectory(${KVTILT_GTEST_SOURCE} ${PROJECT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
endif()
add_library(kvtilt_test_support STATIC EXCLUDE_FROM_ALL tests/support/all_formats.cpp)
target_include_directories(kvtilt_test_support PUBLIC tests)
target_link_libraries(kvtilt_test_support PUBLIC kvtilt::kvtilt GTest::gmock
                                          PRIVATE kvtilt_warnings)
if(KVTILT_TEST_PCH)
  target_precompile_headers(kvtilt_test_support PRIVATE
                            <gmock/gmock.h> <gtest/gtest.h> <kvtilt/kvtilt.hpp>)
endif()

# The weakest instruction sets: those that any machine runs.
set(KVTILT_FORCED_ISAS scalar avx2)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(KVTILT_FORCED_ISAS neon)
endif()

function(kvtilt_test source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LIBRARIES")

  string(REGEX REPLACE "_test\\.cpp$" "" path ${source})
  string(REPLACE "/" "_" target "test_${path}")
  if(TARGET ${target})
    return()
  endif()

  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/${source})
  target_link_libraries(${target} PRIVATE kvtilt_test_support kvtilt_warnings ${arg_LIBRARIES}
                                          GTest::gtest_main)
  if(KVTILT_TEST_PCH)
    target_precompile_headers(${target} REUSE_FROM kvtilt_test_support)
  endif()
  gtest_discover_tests(${target} TEST_PREFIX ${path}/ TEST_LIST kvtilt_tests
                       NO_PRETTY_VALUES DISCOVERY_TIMEOUT 120
                       PROPERTIES TIMEOUT 300)
  # Read by ctest right after the list that the line above makes it read.
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES
                                         ${PROJECT_SOURCE_DIR}/cmake/kvtilt_test_labels.cmake)

  # In these folders a test reaches no kernel: it has nothing to share, and nothing to force.
  if(path MATCHES "^(core|quant|page|io)/")
    return()
  endif()
  if(path MATCHES "^examples/")
    # The code under test is in a library of its own: optimizing the test only takes time.
    target_compile_options(${target} PRIVATE -O1)
  else()
    target_compile_options(${target} PRIVATE -include support/all_formats.hpp)
  endif()
  if(KVTILT_TEST_MATRIX AND NOT path MATCHES "^cuda/")
    foreach(isa IN LISTS KVTILT_FORCED_ISAS)
      add_test(NAME ${path}/isa:${isa} COMMAND ${target} --gtest_brief=1 --gtest_filter=-*Random*)
      set_tests_properties(${path}/isa:${isa} PROPERTIES ENVIRONMENT KVTILT_ISA=${isa} LABELS isa
                                                         TIMEOUT 600)
    endforeach()
  endif()
endfunction()
