# `cpack -G DEB`: the packages harp (programs, their libraries, the service) and libharp-dev (headers, CMake files).
#
# packaging/deb.sh configures for it. Everything but links to the programs goes to /usr/lib/harp: our llama.cpp is patched and must
# not be where another package's would be.
include(GNUInstallDirs)

# llama.cpp's own rules have no components
set(libraries llama llama-common ggml ggml-base ${GGML_AVAILABLE_BACKENDS})
get_target_property(headers ggml PUBLIC_HEADER) # paths relative to ggml's folder
list(TRANSFORM headers PREPEND ${HARP_LLAMA_DIR}/ggml/)
set_target_properties(ggml PROPERTIES PUBLIC_HEADER "${headers}")
install(TARGETS ${libraries} EXCLUDE_FROM_ALL
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT programs NAMELINK_COMPONENT development
    PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
set(llama_folder ${PROJECT_BINARY_DIR}/llama.cpp)
set(ggml_folder ${PROJECT_BINARY_DIR}/llama.cpp/ggml)
foreach(name llama ggml)
    install(FILES ${${name}_folder}/${name}-config.cmake ${${name}_folder}/${name}-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/${name} COMPONENT development EXCLUDE_FROM_ALL)
endforeach()

# files in the usual places
set(made ${PROJECT_BINARY_DIR}/packaging)
file(MAKE_DIRECTORY ${made})
if(NOT CMAKE_INSTALL_BINDIR STREQUAL bin)
    foreach(name harp harp-server)
        file(CREATE_LINK ../${CMAKE_INSTALL_BINDIR}/${name} ${made}/${name} SYMBOLIC)
        install(FILES ${made}/${name} DESTINATION bin COMPONENT programs EXCLUDE_FROM_ALL)
    endforeach()
    # find_package(harp) looks in lib/cmake
    file(WRITE ${made}/harp-config.cmake
        "include(\"\${CMAKE_CURRENT_LIST_DIR}/../../../${CMAKE_INSTALL_LIBDIR}/cmake/harp/harp-config.cmake\")\n")
    install(FILES ${made}/harp-config.cmake ${PROJECT_BINARY_DIR}/harp-config-version.cmake
        DESTINATION lib/cmake/harp COMPONENT development EXCLUDE_FROM_ALL)
endif()
file(READ ${PROJECT_SOURCE_DIR}/packaging/harp-server.service service)
string(REPLACE /usr/local/ /usr/ service "${service}")
file(WRITE ${made}/harp-server.service "${service}")
install(FILES ${made}/harp-server.service DESTINATION lib/systemd/system COMPONENT programs EXCLUDE_FROM_ALL)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs/ DESTINATION share/doc/harp
    COMPONENT programs EXCLUDE_FROM_ALL FILES_MATCHING PATTERN "*.md" PATTERN measurements EXCLUDE PATTERN images EXCLUDE)

file(READ ${PROJECT_SOURCE_DIR}/LICENSE copyright)
file(GLOB licences ${HARP_LLAMA_DIR}/LICENSE ${HARP_LLAMA_DIR}/licenses/LICENSE*)
foreach(licence ${licences})
    get_filename_component(name ${licence} NAME)
    file(READ ${licence} text)
    string(APPEND copyright "\n\nllama.cpp, ${name}:\n\n${text}")
endforeach()
file(WRITE ${made}/copyright "${copyright}")
install(FILES ${made}/copyright DESTINATION share/doc/harp COMPONENT programs EXCLUDE_FROM_ALL)
install(FILES ${made}/copyright DESTINATION share/doc/libharp-dev COMPONENT development EXCLUDE_FROM_ALL)

set(CPACK_PACKAGE_VENDOR harp.cpp)
set(CPACK_PACKAGE_CONTACT "harp.cpp <harp.cpp@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL programs development)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS
    ${PROJECT_BINARY_DIR}/bin ${PROJECT_BINARY_DIR}/src) # the build's: these libraries are in the package itself
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_NAME harp)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_SECTION science)
set(CPACK_COMPONENT_PROGRAMS_DESCRIPTION "language models that look twice when they hesitate
 llama.cpp with a second forward pass at uncertain tokens: a command and a
 server. The instructions of the processor are chosen at run time.")
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_RECOMMENDS ca-certificates)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/packaging/debian/postinst
    ${PROJECT_SOURCE_DIR}/packaging/debian/prerm ${PROJECT_SOURCE_DIR}/packaging/debian/postrm)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libharp-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION "language models that look twice when they hesitate, for programs
 Headers of harp.cpp and of the llama.cpp that it is built with, libraries to
 link, and files for CMake: find_package(harp).")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "harp (= ${PROJECT_VERSION})")
include(CPack)
