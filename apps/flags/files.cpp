#include "flags/files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "harp/error.h"

namespace harp::cli {

namespace fs = std::filesystem;

std::ifstream open_file(const std::string & what, const std::string & path) {
    std::error_code unused;
    const bool is_directory = fs::is_directory(path, unused);  // a stream opens it, and fails when it reads
    std::ifstream file(path);
    if (is_directory || !file) {
        const int fault = is_directory ? EISDIR : errno;
        throw Error(ErrorCode::invalid_input, fmt::format("{} '{}': {}", what, path, std::strerror(fault)));
    }
    return file;
}

void remove_byte_order_mark(std::string & text) {
    constexpr std::string_view mark = "\xEF\xBB\xBF";
    if (text.starts_with(mark)) text.erase(0, mark.size());
}

void check_writable(const std::string & what, const std::string & path) {
    std::error_code unused;
    int fault = 0;
    if (fs::is_directory(path, unused)) {
        fault = EISDIR;
    } else {
        const fs::path folder = fs::path(path).parent_path();
        // with a slash at its end only a directory is accepted
        const fs::path place = fs::exists(path, unused) ? fs::path(path) : (folder.empty() ? "." : folder) / "";
        if (::access(place.c_str(), W_OK) != 0) fault = errno;
    }
    if (fault != 0) throw Error(ErrorCode::io, fmt::format("{} '{}': {}", what, path, std::strerror(fault)));
}

void write_file(const std::string & what, const std::string & path, const std::string & text) {
    std::error_code error;
    const fs::file_status old = fs::symlink_status(path, error);
    const fs::path folder = fs::path(path).parent_path();
    const bool is_plain = old.type() == fs::file_type::not_found || old.type() == fs::file_type::regular;
    const bool in_place = !is_plain || ::access(folder.empty() ? "." : folder.c_str(), W_OK) != 0;
    const std::string written = in_place ? path : fmt::format("{}.{}", path, getpid());
    errno = 0;
    std::ofstream file(written);
    file << text;
    file.close();
    int fault = file ? 0 : errno;
    if (fault == 0 && file && !in_place) {
        if (old.type() == fs::file_type::regular) fs::permissions(written, old.permissions(), error);
        if (std::rename(written.c_str(), path.c_str()) != 0) fault = errno;
    }
    if (file && fault == 0) return;
    if (!in_place) fs::remove(written, error);
    throw Error(ErrorCode::io, fmt::format("cannot write the {} '{}': {}", what, path, std::strerror(fault)));
}

}  // namespace harp::cli
