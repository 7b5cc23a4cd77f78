# patched_copy(SOURCE PATCH DESTINATION): a copy of a folder of llama.cpp with one of our patches on it.
#
# The pinned source itself stays as it was fetched. The copy is made anew only where the patch or the source has changed, so that
# configuring again compiles nothing. A patch that does not fit exactly (no fuzz) ends the configuration.
function(patched_copy source patch destination)
    find_program(PATCH_EXECUTABLE patch REQUIRED)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patch})
    file(GLOB files LIST_DIRECTORIES false ${source}/*)
    file(SHA256 ${patch} hashes)
    foreach(file ${files})
        file(SHA256 ${file} hash)
        string(APPEND hashes " ${hash}")
    endforeach()
    string(SHA256 key "${hashes}")
    set(stamp ${destination}/.patched)
    if(EXISTS ${stamp})
        file(READ ${stamp} made_of)
        if(made_of STREQUAL key)
            return()
        endif()
    endif()
    file(REMOVE_RECURSE ${destination})
    file(COPY ${files} DESTINATION ${destination})
    get_filename_component(name ${patch} NAME)
    execute_process(
        COMMAND ${PATCH_EXECUTABLE} --batch --forward --fuzz=0 -p3 -i ${patch}
        WORKING_DIRECTORY ${destination} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(failed)
        file(REMOVE_RECURSE ${destination})
        message(FATAL_ERROR "patches/${name} does not fit ${source}; it was made for the pinned llama.cpp:\n${output}")
    endif()
    file(WRITE ${stamp} ${key})
endfunction()
