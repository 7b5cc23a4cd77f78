// Files that hold tokens and a state with twins. With HARP off llama.cpp's own files are used instead.
//
// Layout: 32-bit words "HRPS", version, kind (0 a whole context, 1 a sequence), n tokens, and two of a checksum over all
// that follows; then the tokens; then the state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "llama.h"

namespace harp::capi {

enum class StateKind : uint32_t { context = 0, sequence = 1 };

struct StateFile {
    std::vector<llama_token> tokens;
    std::vector<uint8_t> state;
    size_t n_bytes = 0;  // size of the file
};

/// Writes to a file beside `path` and renames it, so that a failure leaves an older file intact. A device or a link is
/// written to, not replaced, and so is a file in a folder in which no other can be made.
/// @return bytes written
/// @throws Error{invalid_state} if it cannot be written
size_t write_state_file(const std::filesystem::path & path, StateKind kind, std::span<const llama_token> tokens,
                        std::span<const uint8_t> state);

/// @throws Error{invalid_state} if it cannot be read, is not such a file, or is not as it was written
[[nodiscard]] StateFile read_state_file(const std::filesystem::path & path, StateKind kind);

}  // namespace harp::capi
