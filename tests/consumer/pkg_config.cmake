# Compiles SOURCE with COMPILER and the flags that pkg-config tells for the package in PREFIX.
find_program(pkg_config NAMES pkg-config pkgconf REQUIRED)
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/share/pkgconfig)
execute_process(COMMAND ${pkg_config} --cflags "kvtilt = ${VERSION}" OUTPUT_VARIABLE flags
                COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")
execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only ${flags} ${SOURCE}
                COMMAND_ERROR_IS_FATAL ANY)
