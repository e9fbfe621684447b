# For our own tests, benches and examples: link PRIVATE, never from an installed target.
#
# kvtilt_strict holds the headers to what a user of either compiler may ask for. Clang counts
# -Wsign-conversion as part of -Wconversion, GCC does not: in kvtilt_warnings, for all other code,
# neither does. GCC 12 finds a false -Wrestrict in std::string (its bug 105651).
set(kvtilt_warning_flags -Wall -Wextra -Wpedantic -Wconversion -Werror
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)

add_library(kvtilt_strict INTERFACE)
target_compile_options(kvtilt_strict INTERFACE ${kvtilt_warning_flags})

add_library(kvtilt_warnings INTERFACE)
target_compile_options(kvtilt_warnings INTERFACE ${kvtilt_warning_flags}
                                                 $<$<CXX_COMPILER_ID:Clang>:-Wno-sign-conversion>)
