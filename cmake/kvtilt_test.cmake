# kvtilt_test(<path>_test.cpp [LIBRARIES <target>...])
#
# One executable per file under tests/; its ctest names are <path>/<Suite.Test>. A suite or test
# whose name ends in Golden, Hostile, Property, Agreement or Random has that label in lower case, all
# others have the label unit. With KVTILT_TEST_MATRIX the file also runs once per forced instruction
# set, without its random tests.
include(GoogleTest)

function(kvtilt_test source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LIBRARIES")
  find_package(GTest REQUIRED)

  string(REGEX REPLACE "_test\\.cpp$" "" path ${source})
  string(REPLACE "/" "_" target "test_${path}")
  if(TARGET ${target})
    return()
  endif()

  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/${source})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE kvtilt::kvtilt kvtilt_warnings ${arg_LIBRARIES}
                                          GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${target} TEST_PREFIX ${path}/ TEST_LIST kvtilt_tests
                       NO_PRETTY_VALUES DISCOVERY_TIMEOUT 120
                       PROPERTIES TIMEOUT 300)
  # Read by ctest right after the list that the line above makes it read.
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES
                                         ${PROJECT_SOURCE_DIR}/cmake/kvtilt_test_labels.cmake)

  if(KVTILT_TEST_MATRIX)
    foreach(isa scalar avx2)
      add_test(NAME ${path}/isa:${isa} COMMAND ${target} --gtest_brief=1 --gtest_filter=-*Random*)
      set_tests_properties(${path}/isa:${isa} PROPERTIES ENVIRONMENT KVTILT_ISA=${isa} LABELS isa
                                                         TIMEOUT 600)
    endforeach()
  endif()
endfunction()
