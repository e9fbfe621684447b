# kvtilt_share_kernels(<target> [<source>])
#
# The CPU's kernels are most of what a program with a cache takes to compile. Where the tests are built
# together, they have them already: the target links those, instead of its <source> that has nothing
# else, or of what its one file would make.
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
