# A toolchain file: Debian's cross compiler for aarch64, with libraries installed next to this machine's own (multiarch).
#
#   dpkg --add-architecture arm64; apt-get install g++-aarch64-linux-gnu LIBRARY:arm64 ... qemu-user
#   cmake -B build/aarch64 -G Ninja --toolchain cmake/aarch64-linux-gnu.cmake
#
# packaging/try_aarch64.sh does this in a separate Debian system. qemu-user runs the tests.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
