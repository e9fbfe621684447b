# For our own tests, benches and examples: link PRIVATE, never from an installed target.
# GCC 12 finds a false -Wrestrict in std::string (its bug 105651).
add_library(kvtilt_warnings INTERFACE)
target_compile_options(kvtilt_warnings INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Werror
                                                 $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
