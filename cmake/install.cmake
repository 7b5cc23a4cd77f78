# cmake --install: our library and headers, in addition to what llama.cpp's own rules install.
#
# The components are those of cmake/package.cmake. The package file is written by hand, like llama.cpp's: an exported target
# could not refer to llama.cpp's targets, which are not exported.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS harp harp_kernels
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT programs NAMELINK_COMPONENT development
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/harp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)

list(TRANSFORM harp_cxx_libraries REPLACE "(.+)" "$<$<NOT:$<BOOL:$<CXX_COMPILER_ID>>>:\\1>") # where there is no C++
set(harp_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/harp)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/harp-config.cmake.in ${PROJECT_BINARY_DIR}/harp-config.cmake
    INSTALL_DESTINATION ${harp_package_dir}
    PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/harp-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/harp-config.cmake ${PROJECT_BINARY_DIR}/harp-config-version.cmake
    DESTINATION ${harp_package_dir} COMPONENT development)
