// ggml's work memory in cache lines. ggml does not align its beginning, so operations ask for one more line.
#pragma once

#include <cstddef>

namespace harp::kernels {

/// Rounds bytes up to a multiple of a cache line.
inline size_t whole_lines(size_t bytes) {
    constexpr size_t LINE = 64;
    return (bytes + LINE - 1) / LINE * LINE;
}

/// The first address in `memory` at a cache line.
inline void * at_line(void * memory) {
    return reinterpret_cast<void *>(whole_lines(reinterpret_cast<size_t>(memory)));
}

}  // namespace harp::kernels
