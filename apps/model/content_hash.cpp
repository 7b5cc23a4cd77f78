#include "model/content_hash.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <regex>

#include "flags/files.h"
#include "flags/terminal.h"
#include "harp/error.h"
#include "hash/hash.h"
#include "model/gguf_metadata.h"
#include "model/interrupt.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

namespace harp::cli {

namespace {

namespace fs = std::filesystem;

constexpr off_t least_cached = off_t{1} << 20;  // bytes; a smaller file is read faster than looked up
constexpr int64_t least_age = 3;                // seconds, because clocks of file systems are coarse

[[noreturn]] void fail(const std::string & path) {
    throw Error(ErrorCode::io, fmt::format("'{}' cannot be read: {}", path, std::strerror(errno)));
}

/// What identifies the state of a file: another size, time or inode means other content.
std::string state_of(const struct stat & info) {
    return fmt::format("{} {}.{:09} {}.{:09} {}", info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec,
                       info.st_ctim.tv_sec, info.st_ctim.tv_nsec, info.st_ino);
}

/// The cache's file for one path. Without a home folder nothing is kept or found.
class CacheEntry {
  public:
    explicit CacheEntry(const std::string & path) {
        std::error_code error;
        const std::string whole = fs::canonical(path, error).string();
        const char * cache = std::getenv("XDG_CACHE_HOME");
        const char * home = std::getenv("HOME");
        const bool has_cache = cache != nullptr && *cache == '/';
        if (error || (!has_cache && (home == nullptr || *home != '/'))) return;
        const fs::path folder = has_cache ? fs::path(cache) : fs::path(home) / ".cache";
        file_ = folder / "harp" / "sha256" / hash_sha256_hex(whole.data(), whole.size()).substr(0, 32);
    }
    [[nodiscard]] std::optional<std::string> find(const std::string & state) const {
        std::ifstream file(file_);
        std::string known, hash;
        constexpr size_t hash_size = 64;
        if (!std::getline(file, known) || known != state || !std::getline(file, hash) || hash.size() != hash_size)
            return std::nullopt;
        return hash;
    }
    void keep(const std::string & state, const std::string & hash) const {
        if (file_.empty()) return;
        std::error_code error;
        fs::create_directories(file_.parent_path(), error);
        try {
            write_file("hash", file_, fmt::format("{}\n{}\n", state, hash));
        } catch (const Error &) {  // the next run reads the model again
        }
    }

  private:
    fs::path file_;
};

std::string hash_all(std::FILE * file, const std::string & path, off_t size) {
    sha256_t state;
    sha256_init(&state);
    std::vector<unsigned char> buffer(size_t{1} << 20);
    ProgressLine progress;
    uint64_t n_read = 0;
    while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), file)) {
        if (interrupt_requested) throw Error(ErrorCode::aborted, "interrupted while reading " + path);
        sha256_update(&state, buffer.data(), n);
        n_read += n;
        const double part = size > 0 ? static_cast<double>(n_read) / static_cast<double>(size) : 1;
        progress.show(fmt::format("reading {} for its hash {:3.0f} %", fs::path(path).filename().string(), 100 * part));
    }
    if (std::ferror(file) != 0) fail(path);
    std::array<unsigned char, SHA256_DIGEST_SIZE> digest{};
    sha256_final(&state, digest.data());
    std::string hex;
    for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
    return hex;
}

/// Whether a GGUF file says that it is a whole model.
bool is_whole(const std::string & path) {
    const GgufMetadata file(path);
    return file && file.uint16("split.count").value_or(1) <= 1;
}

}  // namespace

std::string content_hash(const std::string & path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
    struct stat before {
    }, after{};
    if (!file || fstat(fileno(file.get()), &before) != 0) fail(path);
    if (!S_ISREG(before.st_mode) || before.st_size < least_cached) return hash_all(file.get(), path, before.st_size);
    const CacheEntry entry(path);
    const std::string state = state_of(before);
    if (const auto known = entry.find(state)) return *known;
    std::string hash = hash_all(file.get(), path, before.st_size);
    const auto youngest = std::max(before.st_mtim.tv_sec, before.st_ctim.tv_sec);
    const bool is_settled = std::time(nullptr) - youngest >= least_age;
    if (is_settled && fstat(fileno(file.get()), &after) == 0 && state_of(after) == state) entry.keep(state, hash);
    return hash;
}

std::vector<std::string> model_files(const std::string & path) {
    static const std::regex part(R"((.*)-([0-9]{5})-of-([0-9]{5})\.gguf)");
    std::smatch found;
    if (!std::regex_match(path, found, part)) return {path};
    const int n_parts = std::stoi(found[3]);
    if (n_parts == 0 || is_whole(path)) return {path};
    std::vector<std::string> files;
    for (int i = 0; i < n_parts; ++i)
        files.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", found[1].str(), i + 1, n_parts));
    return files;
}

std::string model_fingerprint(const std::string & path) {
    const std::vector<std::string> files = model_files(path);
    if (files.size() < 2) return content_hash(path);
    std::string hashes;
    for (const std::string & file : files) hashes += content_hash(file) + "\n";
    return hash_sha256_hex(hashes.data(), hashes.size());
}

}  // namespace harp::cli
