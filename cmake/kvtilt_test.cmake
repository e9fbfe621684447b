# kvtilt_test(<path>_test.cpp [LIBRARIES <target>...])
#
# One executable per file under tests/, or per folder with KVTILT_TEST_TOGETHER; ctest names are
# <path>/<Suite.Test> in both cases. A suite or test whose name ends in Golden, Hostile, Property,
# Agreement or Random gets that label in lower case, all others the label unit; tests of cuda/ also
# get the label cuda. With KVTILT_TEST_MATRIX the file also runs once per forced instruction set,
# without its random tests.
include(GoogleTest)

# Takes a third of the time where everything is built once, since most of each file's code is the
# library's; names in a folder must then differ. Off for development: a change to one file would
# rebuild its neighbours, and a test that forgets an include would compile.
option(KVTILT_TEST_TOGETHER "Compile the tests of a folder as one file" OFF)

# Where no compiled GoogleTest fits (cross compilers), it is built from Debian's package googletest.
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
# A quarter of the kernels' compile time is the stand-in for AVX-VNNI, which no test uses on machines
# that have AVX-VNNI.
set(cpu_flags)
if(EXISTS /proc/cpuinfo)
  file(STRINGS /proc/cpuinfo cpu_flags REGEX " avx_vnni " LIMIT_COUNT 1)
endif()
if(cpu_flags)
  target_compile_definitions(kvtilt_test_support PRIVATE KVTILT_TEST_HAS_AVX_VNNI=1)
endif()

# The weakest instruction sets, which all machines run.
set(KVTILT_FORCED_ISAS scalar avx2)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(KVTILT_FORCED_ISAS neon)
endif()

function(kvtilt_test source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LIBRARIES")

  string(REGEX REPLACE "_test\\.cpp$" "" path ${source})
  set(source ${PROJECT_SOURCE_DIR}/tests/${source})
  # A file that replaces operator new is not joined: its neighbours would get that operator too.
  file(STRINGS ${source} own_new REGEX "^void\\* operator new")
  set(program ${path})
  if(KVTILT_TEST_TOGETHER AND NOT own_new)
    cmake_path(GET path PARENT_PATH program)
  endif()
  string(REPLACE "/" "_" target "test_${program}")
  # Tests of these folders call no kernel: there are none to share and no instruction set to force.
  string(REGEX MATCH "^(core|quant|io)/" without_kernels ${path})

  if(NOT TARGET ${target})
    add_executable(${target})
    set_target_properties(${target} PROPERTIES UNITY_BUILD ${KVTILT_TEST_TOGETHER}
                                               UNITY_BUILD_BATCH_SIZE 0)
    target_link_libraries(${target} PRIVATE kvtilt_test_support kvtilt_warnings ${arg_LIBRARIES}
                                            GTest::gtest_main)
    # Optimizing a test takes longer than running it. The kernels, in all_formats.cpp, keep their
    # flags.
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
    if(NOT without_kernels AND NOT path MATCHES "^examples/")
      target_compile_options(${target} PRIVATE -include support/all_formats.hpp)
    endif()
    if(path MATCHES "^cuda/" AND CMAKE_CXX_FLAGS MATCHES "-fsanitize=address")
      # Each thread of an emulated block is a fiber; giving each a fake stack would take most of the
      # time.
      target_compile_options(${target} PRIVATE -fsanitize-address-use-after-return=never)
    endif()
  endif()
  get_target_property(sources ${target} SOURCES)
  if(source IN_LIST sources)
    return()
  endif()
  target_sources(${target} PRIVATE ${source})

  # The tests of this file: all of its suites, some of which are parameterized.
  file(STRINGS ${source} suites REGEX "^TEST(_F|_P)?\\(")
  list(TRANSFORM suites REPLACE "^[A-Z_]+\\(([A-Za-z0-9]+),.*" "\\1.*:*/\\1.*")
  list(REMOVE_DUPLICATES suites)
  list(JOIN suites ":" suites)
  set(timeout 300)
  if("$ENV{KVTILT_FULL}")
    set(timeout 1500)  # the long random programs
  endif()
  gtest_discover_tests(${target} TEST_PREFIX ${path}/ TEST_LIST kvtilt_tests TEST_FILTER ${suites}
                       NO_PRETTY_VALUES DISCOVERY_TIMEOUT 120
                       PROPERTIES TIMEOUT ${timeout})
  # ctest reads this file right after the list of tests that gtest_discover_tests() makes it read.
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES
                                         ${PROJECT_SOURCE_DIR}/cmake/kvtilt_test_labels.cmake)

  if(KVTILT_TEST_MATRIX AND NOT without_kernels AND NOT path MATCHES "^cuda/")
    set(isas ${KVTILT_FORCED_ISAS})
    if(path MATCHES "^examples/")  # whole models: minutes with scalar code, half of one with AVX2
      list(REMOVE_ITEM isas scalar)
      if(NOT "$ENV{KVTILT_FULL}")
        set(isas)
      endif()
    endif()
    foreach(isa IN LISTS isas)
      add_test(NAME ${path}/isa:${isa}
               COMMAND ${target} --gtest_brief=1 --gtest_filter=${suites}:-*Random*)
      set_tests_properties(${path}/isa:${isa} PROPERTIES ENVIRONMENT KVTILT_ISA=${isa} LABELS isa
                                                         TIMEOUT 600)
    endforeach()
  endif()
endfunction()
