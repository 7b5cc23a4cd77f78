# Installs the build into a separate prefix, builds examples/ with it, runs the example, and compares its output with that of the
# example built in the tree.
set(work ${BUILD_DIR}/tests/install/work)
set(shared $ENV{HARP_SHARED_DATA})
if(NOT shared)
    set(shared ${SOURCE_DIR}/../shared/data)
endif()
set(model ${shared}/models/stories260K/stories260K-f32.gguf)

function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "${ARGN}\nfailed with ${result}:\n${output}")
    endif()
    set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${work})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${work}/prefix)
foreach(file include/harp/harp.h include/harp/kernels.h include/harp/forward_pass.h include/llama.h)
    if(NOT EXISTS ${work}/prefix/${file})
        message(FATAL_ERROR "not installed: ${file}")
    endif()
endforeach()

run(${CMAKE_COMMAND} -S ${SOURCE_DIR}/examples -B ${work}/examples -G ${GENERATOR} -D CMAKE_PREFIX_PATH=${work}/prefix
    -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_C_COMPILER=${C_COMPILER} -D CMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build ${work}/examples)

# checks that it uses the installed library, not the one in the build tree
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${work}/examples/simple
    RESOLVED_DEPENDENCIES_VAR dependencies UNRESOLVED_DEPENDENCIES_VAR missing
    POST_INCLUDE_REGEXES "libharp|libllama|libggml" POST_EXCLUDE_REGEXES ".*")
list(FILTER dependencies EXCLUDE REGEX "^${work}/prefix/")
if(dependencies OR missing)
    message(FATAL_ERROR "the installed example uses ${dependencies}; not found: ${missing}")
endif()

if(NOT EXISTS ${model})
    message(STATUS "model not there: ${model}")
    return()
endif()
set(prompt "Once upon a time")
run(${work}/examples/simple ${model} ${prompt} 40)
set(installed "${output}")
run(${EXAMPLE} ${model} ${prompt} 40)
if(NOT installed STREQUAL output)
    message(FATAL_ERROR "installed:\n${installed}\nin the tree:\n${output}")
endif()
string(LENGTH "${installed}" length)
if(length LESS 60 OR NOT installed MATCHES "^Once upon a time.*hesitated at [1-9]")
    message(FATAL_ERROR "not a story with hesitations:\n${installed}")
endif()
file(REMOVE_RECURSE ${work})
message(STATUS "${installed}")
