#include "capi/state_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <string>

#include "harp/error.h"

namespace harp::capi {

namespace {

constexpr uint32_t magic = 0x53505248;  // "HRPS", little endian
constexpr uint32_t version = 2;

using Header = std::array<uint32_t, 6>;  // magic, version, kind, number of tokens, checksum (lower half first)

/// Continues `sum` with `bytes`, eight at a time as states are large. Of two inputs that differ in one word the sums
/// differ, since each step can be undone.
uint64_t checksum(uint64_t sum, std::span<const uint8_t> bytes) {
    constexpr uint64_t odd = 0x9E3779B97F4A7C15;
    for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
        uint64_t word = 0;
        std::memcpy(&word, bytes.data() + i, std::min(sizeof(word), bytes.size() - i));
        sum = (sum ^ word) * odd;
        sum ^= sum >> 32;  // a product carries differences to higher bits only
    }
    return sum;
}

uint64_t checksum(std::span<const llama_token> tokens, std::span<const uint8_t> state) {
    const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t *>(tokens.data()), tokens.size_bytes());
    return checksum(checksum(state.size(), bytes), state);
}

template <typename T>
void write(std::ofstream & out, std::span<const T> values) {
    out.write(reinterpret_cast<const char *>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
}

template <typename T>
void read(std::ifstream & in, std::span<T> values) {
    in.read(reinterpret_cast<char *>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
}

[[noreturn]] void fail(const std::filesystem::path & path, const std::string & why) {
    throw Error(ErrorCode::invalid_state, path.string() + ": " + why);
}

}  // namespace

size_t write_state_file(const std::filesystem::path & path, StateKind kind, std::span<const llama_token> tokens,
                        std::span<const uint8_t> state) {
    std::error_code ignored;
    const std::filesystem::file_status old = std::filesystem::symlink_status(path, ignored);
    const bool is_plain = old.type() == std::filesystem::file_type::not_found || std::filesystem::is_regular_file(old);
    std::filesystem::path part = path;
    part += '.';
    part += std::to_string(getpid());
    std::ofstream out;
    if (is_plain) out.open(part, std::ios::binary | std::ios::trunc);
    const bool in_place = !out.is_open();
    if (in_place) {
        out.clear();
        out.open(path, std::ios::binary | std::ios::trunc);
    }
    const uint64_t sum = checksum(tokens, state);
    const Header header = {magic,
                           version,
                           static_cast<uint32_t>(kind),
                           static_cast<uint32_t>(tokens.size()),
                           static_cast<uint32_t>(sum),
                           static_cast<uint32_t>(sum >> 32)};
    write<uint32_t>(out, header);
    write(out, tokens);
    write(out, state);
    out.close();
    std::error_code error;
    if (out && !in_place) {
        if (std::filesystem::is_regular_file(old)) std::filesystem::permissions(part, old.permissions(), error);
        std::filesystem::rename(part, path, error);
    }
    if (!out || error) {
        if (!in_place) std::filesystem::remove(part, ignored);
        fail(path, "cannot be written");
    }
    return sizeof(header) + tokens.size_bytes() + state.size_bytes();
}

StateFile read_state_file(const std::filesystem::path & path, StateKind kind) {
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(path, error);
    std::ifstream in(path, std::ios::binary);
    Header header{};
    if (error || !in) fail(path, "cannot be read");
    read<uint32_t>(in, header);
    if (!in || header[0] != magic) fail(path, "is not a state with twins (llama.cpp wrote it, or HARP was off?)");
    if (header[1] != version)
        fail(path, "version " + std::to_string(header[1]) + "; allowed: " + std::to_string(version));
    if (header[2] != static_cast<uint32_t>(kind)) {
        fail(path, kind == StateKind::sequence ? "holds a whole context, not a sequence" : "holds a sequence only");
    }
    StateFile file;
    const uintmax_t tokens_bytes = uintmax_t{header[3]} * sizeof(llama_token);
    if (size < sizeof(header) || tokens_bytes > size - sizeof(header)) fail(path, "ends before its tokens do");
    file.tokens.resize(header[3]);
    file.state.resize(static_cast<size_t>(size - sizeof(header) - tokens_bytes));
    read<llama_token>(in, file.tokens);
    read<uint8_t>(in, file.state);
    if (!in) fail(path, "cannot be read");
    if (checksum(file.tokens, file.state) != (uint64_t{header[5]} << 32 | header[4])) fail(path, "is damaged");
    file.n_bytes = static_cast<size_t>(size);
    return file;
}

}  // namespace harp::capi
