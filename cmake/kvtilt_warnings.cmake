# For our own tests, benches and examples: link PRIVATE, never from an installed target.
#
# kvtilt_strict, for the headers, has the warnings that users of either compiler may enable. Clang's
# -Wconversion includes -Wsign-conversion, GCC's does not: kvtilt_warnings, for all other code,
# turns it off. GCC 12 has false positives of -Wrestrict in std::string (its bug 105651).
set(kvtilt_warning_flags -Wall -Wextra -Wpedantic -Wconversion -Werror
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)

add_library(kvtilt_strict INTERFACE)
target_compile_options(kvtilt_strict INTERFACE ${kvtilt_warning_flags})

add_library(kvtilt_warnings INTERFACE)
target_compile_options(kvtilt_warnings INTERFACE ${kvtilt_warning_flags}
                                                 $<$<CXX_COMPILER_ID:Clang>:-Wno-sign-conversion>)
