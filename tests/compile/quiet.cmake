# Checks that include/kvtilt never prints or ends the program, throws in one place only, reads no
# environment variable but KVTILT_ISA, and does without std::atomic_ref, which libc++ has from
# version 19 on. Run from the root: cmake -P tests/compile/quiet.cmake
cmake_minimum_required(VERSION 3.23)

set(words "(^|[^a-z_])(cout|cerr|clog|printf|puts|fwrite|abort|exit|terminate|assert|getenv|throw|atomic_ref)[ (<]")

file(GLOB_RECURSE files RELATIVE ${CMAKE_SOURCE_DIR}/include/kvtilt include/kvtilt/*)
foreach(file IN LISTS files)
  file(STRINGS include/kvtilt/${file} lines REGEX "${words}")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "//.*" "" line "${line}")
    if((file STREQUAL "core/status.hpp" AND line MATCHES "if \\(!ok\\(\\)\\) throw ") OR
       (file STREQUAL "cpu/isa.hpp" AND line MATCHES "getenv\\(\"KVTILT_ISA\"\\)"))
      continue()
    elseif(line MATCHES "${words}")
      message(SEND_ERROR "${file}: ${line}")
    endif()
  endforeach()
endforeach()
