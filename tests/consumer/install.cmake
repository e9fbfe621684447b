# Installs BUILD into an empty PREFIX; every header must arrive. Run from the root.
file(REMOVE_RECURSE ${PREFIX})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX}
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(GLOB_RECURSE headers RELATIVE ${CMAKE_SOURCE_DIR} include/kvtilt/*)
list(FILTER headers EXCLUDE REGEX "\\.md$")
foreach(header IN LISTS headers)
  if(NOT EXISTS ${PREFIX}/${header})
    message(SEND_ERROR "${header} is not installed")
  endif()
endforeach()
