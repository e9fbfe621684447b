# The installed files do not depend on the packaging machine: the headers of all components are
# always installed, and the config file defines a component's target if its dependency is found.
include(CMakePackageConfigHelpers)
set(kvtilt_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvtilt)

install(TARGETS kvtilt EXPORT kvtilt_targets FILE_SET HEADERS)
install(EXPORT kvtilt_targets NAMESPACE kvtilt:: FILE kvtilt-targets.cmake
        DESTINATION ${kvtilt_package_dir})
install(DIRECTORY include/kvtilt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.inl" PATTERN "*.cuh" PATTERN "plan/*.hpp"
                       PATTERN "io/*.hpp")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/kvtilt)

configure_package_config_file(cmake/kvtilt-config.cmake.in kvtilt-config.cmake
                              INSTALL_DESTINATION ${kvtilt_package_dir})
# Before 1.0, minor versions may break the interface.
write_basic_package_version_file(kvtilt-config-version.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvtilt-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/kvtilt-config-version.cmake
        DESTINATION ${kvtilt_package_dir})

# For builds without CMake: the headers that need the standard library alone.
configure_file(cmake/kvtilt.pc.in kvtilt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvtilt.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
