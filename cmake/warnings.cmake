# Warnings are errors, for our own code only: link harp_warnings PRIVATE.
# (GCC's -Wnull-dereference and -Wmaybe-uninitialized find only faults of library headers at -O3.)
add_library(harp_warnings INTERFACE)
target_compile_options(harp_warnings INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
    -Wimplicit-fallthrough $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> -Werror)
