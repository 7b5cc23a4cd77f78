# patched_copy(SOURCE DESTINATION PATCHES...): a copy of llama.cpp's source with our patches applied.
#
# The source itself is not changed. Files keep their times, so that configuring again compiles only what the source or a patch
# has changed. A patch that does not fit exactly (no fuzz) ends the configuration with an error.
function(patched_copy source destination)
    file(REAL_PATH ${source} source) # else a link is copied as a link, and the patches change its target
    find_program(PATCH_EXECUTABLE patch REQUIRED)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ARGN})
    set(patched "")
    set(key "")
    foreach(patch ${ARGN})
        file(SHA256 ${patch} hash)
        string(APPEND key "${hash}\n")
        file(STRINGS ${patch} names REGEX "^\\+\\+\\+ b/")
        list(TRANSFORM names REPLACE "^\\+\\+\\+ b/" "")
        list(APPEND patched ${names})
    endforeach()
    list(REMOVE_DUPLICATES patched)
    foreach(name ${patched})
        file(SHA256 ${source}/${name} hash)
        string(APPEND key "${hash} ${name}\n")
    endforeach()

    set(excluded PATTERN .git EXCLUDE PATTERN build EXCLUDE)
    foreach(name ${patched})
        string(REGEX REPLACE "([.+])" "\\\\\\1" name ${name})
        list(APPEND excluded REGEX "/${name}$" EXCLUDE)
    endforeach()
    # folders that can be written to, also where those of the source cannot
    file(COPY ${source}/ DESTINATION ${destination} DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE
        GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE ${excluded})

    set(stamp ${destination}/.patched)
    if(EXISTS ${stamp})
        file(READ ${stamp} made_of)
        if(made_of STREQUAL key)
            return()
        endif()
    endif()
    foreach(name ${patched})
        get_filename_component(folder ${destination}/${name} DIRECTORY)
        file(COPY ${source}/${name} DESTINATION ${folder})
    endforeach()
    foreach(patch ${ARGN})
        execute_process(
            COMMAND ${PATCH_EXECUTABLE} --batch --forward --fuzz=0 -p1 -i ${patch}
            WORKING_DIRECTORY ${destination} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
        if(failed)
            file(REMOVE ${stamp})
            get_filename_component(name ${patch} NAME)
            message(FATAL_ERROR "patches/${name} does not fit ${source}; it was made for the pinned llama.cpp:\n${output}")
        endif()
    endforeach()
    file(WRITE ${stamp} ${key})
endfunction()
