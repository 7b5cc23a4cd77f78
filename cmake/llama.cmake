# llama.cpp, built from its pinned source (or from -DHARP_LLAMA_SOURCE=DIR) as part of this build, with patches/ applied.
#
# Back-end options are passed through unchanged: -DGGML_CUDA=ON, -DGGML_VULKAN=ON, -DGGML_RPC=ON, ...
if(HARP_LLAMA_SOURCE)
    set(harp_llama_dir "${HARP_LLAMA_SOURCE}")
else()
    set(harp_llama_dir "${CMAKE_CURRENT_SOURCE_DIR}/.deps/llama.cpp")
    if(NOT EXISTS "${harp_llama_dir}/CMakeLists.txt")
        execute_process(
            COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/scripts/fetch" llama.cpp
            RESULT_VARIABLE harp_fetch_failed)
        if(harp_fetch_failed)
            message(FATAL_ERROR "fetching the pinned llama.cpp source failed (see above); "
                "-DHARP_LLAMA_SOURCE=DIR builds on a checkout of yours")
        endif()
    endif()
endif()
if(NOT EXISTS "${harp_llama_dir}/include/llama.h")
    message(FATAL_ERROR "no llama.cpp source in ${harp_llama_dir}: include/llama.h is missing")
endif()
include(${CMAKE_CURRENT_LIST_DIR}/patched_copy.cmake)
file(GLOB harp_patches CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/patches/*.patch)
patched_copy(${harp_llama_dir} ${CMAKE_CURRENT_BINARY_DIR}/llama.cpp-source ${harp_patches})
set(harp_llama_dir ${CMAKE_CURRENT_BINARY_DIR}/llama.cpp-source)

if(PROJECT_IS_TOP_LEVEL)
    set(BUILD_SHARED_LIBS ON CACHE BOOL "Build shared libraries")
elseif(NOT DEFINED BUILD_SHARED_LIBS)
    set(BUILD_SHARED_LIBS ON) # here and below, but not in the project that includes this one
endif()
set(LLAMA_BUILD_COMMON ${HARP_BUILD_APPS})
foreach(part TESTS TOOLS EXAMPLES SERVER APP UI)
    set(LLAMA_BUILD_${part} OFF CACHE BOOL "" FORCE)
endforeach()
set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "" FORCE)
# ccache is chosen by CMAKE_CXX_COMPILER_LAUNCHER (presets), not by ggml's own search
set(GGML_CCACHE OFF CACHE BOOL "" FORCE)
# programs and libraries must find the libraries once installed, wherever the prefix is
if(NOT DEFINED CMAKE_INSTALL_RPATH)
    include(GNUInstallDirs)
    file(RELATIVE_PATH harp_lib_from_bin "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
    set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/${harp_lib_from_bin}")
endif()
# otherwise llama.cpp takes its build number from our git history, and is compiled anew after each commit
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT "pinned-0.5.0")
if(HARP_LLAMA_SOURCE)
    execute_process(
        COMMAND git -C ${HARP_LLAMA_SOURCE} rev-parse --short HEAD
        OUTPUT_VARIABLE LLAMA_BUILD_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT LLAMA_BUILD_COMMIT)
        set(LLAMA_BUILD_COMMIT "unknown")
    endif()
endif()

add_subdirectory("${harp_llama_dir}" "${CMAKE_CURRENT_BINARY_DIR}/llama.cpp")
set(HARP_LLAMA_DIR "${harp_llama_dir}")
if(GGML_RPC AND PROJECT_IS_TOP_LEVEL) # ggml-rpc-server, the other side, must be of the same version
    add_subdirectory("${harp_llama_dir}/tools/rpc" "${CMAKE_CURRENT_BINARY_DIR}/llama.cpp/tools/rpc")
    set_target_properties(ggml-rpc-server PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endif()

# A first ./run waits for these. What runs once (parsers of flags and templates, loading, the description of graphs) gains nothing by
# -O3, what runs for each token does.
foreach(target llama llama-common cpp-httplib)
    if(TARGET ${target})
        target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
    endif()
endforeach()
set_property(SOURCE gguf.cpp ggml-backend-meta.cpp ggml-opt.cpp DIRECTORY ${harp_llama_dir}/ggml/src
    APPEND PROPERTY COMPILE_OPTIONS $<$<CONFIG:Release>:-O1>)

# Compiles SOURCE... with -O3, together: CMake leaves sources with options of their own out of unity builds.
function(harp_optimise target) # harp_optimise(TARGET SOURCE...)
    set(sources ${ARGN})
    if(HARP_UNITY_BUILD)
        set_source_files_properties(${sources} TARGET_DIRECTORY ${target} PROPERTIES HEADER_FILE_ONLY ON)
        list(TRANSFORM sources REPLACE "(.+)" "#include \"\\1\"\n")
        string(CONCAT includes ${sources})
        set(sources ${CMAKE_CURRENT_BINARY_DIR}/${target}_for_each_token.cpp)
        file(GENERATE OUTPUT ${sources} CONTENT "${includes}") # CONFIGURE would take a name between two @ in a path for a variable
        target_sources(${target} PRIVATE ${sources})
    endif()
    set_property(SOURCE ${sources} TARGET_DIRECTORY ${target} APPEND PROPERTY COMPILE_OPTIONS $<$<CONFIG:Release>:-O3>)
endfunction()

set(for_each_token batch context graph grammar kv-cache memory-recurrent sampler vocab)
list(TRANSFORM for_each_token REPLACE "(.+)" "${harp_llama_dir}/src/llama-\\1.cpp")
harp_optimise(llama ${for_each_token} ${harp_llama_dir}/src/unicode.cpp)
if(HARP_UNITY_BUILD)
    file(GLOB sources ${harp_llama_dir}/src/*.cpp) # libllama keeps its own files out of its unity build
    set_source_files_properties(${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)
endif()
harp_compile_together(llama 32)

if(TARGET llama-common)
    set(for_each_token ngram-cache ngram-map ngram-mod reasoning-budget sampling speculative)
    list(TRANSFORM for_each_token REPLACE "(.+)" "${harp_llama_dir}/common/\\1.cpp")
    harp_optimise(llama-common ${for_each_token})
    harp_compile_together(llama-common 16)
    # these specialise templates that other sources use before
    set_source_files_properties(${harp_llama_dir}/common/jinja/value.cpp ${harp_llama_dir}/common/json.cpp
        TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endif()

# no warnings from headers that are not ours
foreach(target llama llama-common ggml ggml-base ${GGML_AVAILABLE_BACKENDS})
    if(TARGET ${target})
        get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
        if(directories)
            set_target_properties(${target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${directories}")
        endif()
    endif()
endforeach()
