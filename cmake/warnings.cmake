# Warnings are errors, for our own code only: link harp_warnings PRIVATE.
add_library(harp_warnings INTERFACE)
target_compile_options(harp_warnings INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
    -Wnull-dereference -Wimplicit-fallthrough -Werror)
