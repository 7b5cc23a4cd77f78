# Warnings are errors, for our own code only: link harp_warnings PRIVATE. Not in other projects that include this one, whose
# compiler may be a later one, with warnings that are new.
# (Without GCC's -Wnull-dereference and -Wmaybe-uninitialized, which at -O3 only warn about library headers.)
add_library(harp_warnings INTERFACE)
target_compile_options(harp_warnings INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
    -Wimplicit-fallthrough $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>
    # of the operators of llama.cpp's common_json, in Clang before 16
    $<$<CXX_COMPILER_ID:Clang>:-Wno-ambiguous-reversed-operator> $<$<BOOL:${PROJECT_IS_TOP_LEVEL}>:-Werror>)

# HARP_SANITIZE=thread, or address,undefined: our code and the server under a sanitizer, with assertions; llama.cpp's libraries are
# not instrumented. (The library's tests have an option of their own, HARP_SANITIZER_TESTS.)
set(HARP_SANITIZE "" CACHE STRING "Sanitizers of our code and of the server: thread, or address,undefined")
if(HARP_SANITIZE)
    set(harp_sanitize_options -fsanitize=${HARP_SANITIZE} -g -UNDEBUG)
    target_compile_options(harp_warnings INTERFACE ${harp_sanitize_options})
    target_link_options(harp_warnings INTERFACE -fsanitize=${HARP_SANITIZE})
endif()
