# kvtilt_share_kernels(<target> [<source>])
#
# Compiling the CPU kernels is most of the compile time of a program with a cache. With
# KVTILT_TEST_TOGETHER the tests have them already, so the target links those: in place of <source>,
# which defines nothing else, or in place of the kernels that its only file would compile.
function(kvtilt_share_kernels target)
  if(NOT KVTILT_TEST_TOGETHER OR NOT KVTILT_BUILD_TESTS)
    return()
  endif()
  target_link_libraries(${target} PRIVATE $<LINK_ONLY:kvtilt_test_support>)
  if(ARGN)
    get_target_property(sources ${target} SOURCES)
    list(REMOVE_ITEM sources ${ARGN})
    set_property(TARGET ${target} PROPERTY SOURCES ${sources})
  else()
    target_compile_options(${target} PRIVATE
      -include ${PROJECT_SOURCE_DIR}/tests/support/all_formats.hpp)
  endif()
endfunction()
