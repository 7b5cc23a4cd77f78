// ggml's work memory, in cache lines. Where it begins, ggml does not say: operations ask for a line more.
#pragma once

#include <cstddef>

namespace harp::kernels {

/// Bytes up to the next multiple of a cache line.
inline size_t whole_lines(size_t bytes) {
    constexpr size_t LINE = 64;
    return (bytes + LINE - 1) / LINE * LINE;
}

/// The first line in it.
inline void * at_line(void * memory) {
    return reinterpret_cast<void *>(whole_lines(reinterpret_cast<size_t>(memory)));
}

}  // namespace harp::kernels
