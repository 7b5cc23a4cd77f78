#include "decoding/npz.h"

#include <zip.h>

#include <regex>
#include <string_view>
#include <utility>

#include "harp/error.h"

namespace harp::decoding {
namespace {

constexpr std::string_view npy_magic = "\x93NUMPY";
constexpr size_t npy_largest_header = 1 << 16;

std::string shape_text(const std::string & n_rows, const std::string & n_columns) {
    std::string text = "(";
    return text.append(n_rows).append(", ").append(n_columns).append(")");
}

struct NpyView {
    std::string header;     // a Python dictionary, as text
    std::string_view data;  // what follows the header
};

/// Splits a .npy file (numpy.lib.format): magic, version, header length (16 bits, from version 2 on 32 bits), header,
/// data.
/// @return an empty header if it is not a .npy file
NpyView split_npy(std::string_view npy) {
    constexpr size_t version_at = npy_magic.size();
    constexpr size_t length_at = version_at + 2;
    if (npy.size() < length_at + 4 || !npy.starts_with(npy_magic)) return {};
    const size_t n_length_bytes = npy[version_at] == 1 ? 2 : 4;
    size_t length = 0;
    for (size_t i = n_length_bytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(npy[length_at + i]);
    const size_t header_at = length_at + n_length_bytes;
    if (length > npy.size() - header_at) return {};
    return {std::string(npy.substr(header_at, length)), npy.substr(header_at + length)};
}

}  // namespace

void NpzArchive::Close::operator()(zip * archive) const noexcept {
    zip_discard(archive);
}

NpzArchive::NpzArchive(std::filesystem::path file) : file_(std::move(file)) {
    int code = 0;
    archive_.reset(zip_open(file_.c_str(), ZIP_RDONLY, &code));
    if (archive_) return;
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    const bool is_io = code == ZIP_ER_NOENT || code == ZIP_ER_OPEN || code == ZIP_ER_READ;
    throw Error(is_io ? ErrorCode::io : ErrorCode::invalid_input, file_.string() + ": " + reason);
}

std::vector<uint8_t> NpzArchive::bytes(const std::string & name, size_t n_rows, size_t n_columns) const {
    const size_t n_bytes = n_rows * n_columns;
    const std::string npy = entry(name, n_bytes + npy_largest_header);
    const NpyView view = split_npy(npy);
    if (view.header.empty()) fail(name, "not in numpy's .npy format");
    static const std::regex layout(
        R"(\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,18}), (\d{1,18})\),? *\} *\n?)");
    std::smatch match;
    if (!std::regex_match(view.header, match, layout)) fail(name, "not a two-dimensional uint8 array in C order");
    if (std::stoull(match[1]) != n_rows || std::stoull(match[2]) != n_columns) {
        fail(name, "of shape " + shape_text(match[1], match[2]) + ", expected " +
                       shape_text(std::to_string(n_rows), std::to_string(n_columns)) + " (positions, n_embd / 8)");
    }
    if (view.data.size() != n_bytes) {
        fail(name, "holds " + std::to_string(view.data.size()) + " bytes, expected " + std::to_string(n_bytes));
    }
    return {view.data.begin(), view.data.end()};
}

std::string NpzArchive::entry(const std::string & name, size_t largest_size) const {
    const std::string entry_name = name + ".npy";
    zip_stat_t stat;
    if (zip_stat(archive_.get(), entry_name.c_str(), 0, &stat) != 0) fail(name, "not in the archive");
    // checked before anything is inflated
    if ((stat.valid & ZIP_STAT_SIZE) == 0 || stat.size > largest_size) fail(name, "larger than it can be");

    const auto close = [](zip_file_t * f) { zip_fclose(f); };
    const std::unique_ptr<zip_file_t, decltype(close)> opened(zip_fopen_index(archive_.get(), stat.index, 0), close);
    if (!opened) fail(name, zip_strerror(archive_.get()));
    std::string content(stat.size, '\0');
    size_t n_read = 0;
    while (n_read < content.size()) {
        const zip_int64_t n = zip_fread(opened.get(), content.data() + n_read, content.size() - n_read);
        if (n <= 0) fail(name, n < 0 ? zip_file_strerror(opened.get()) : "ends too early");
        n_read += static_cast<size_t>(n);
    }
    // the checksum is compared only at the end of the entry, so read past the data
    char beyond = 0;
    const zip_int64_t n_beyond = zip_fread(opened.get(), &beyond, 1);
    if (n_beyond != 0) fail(name, n_beyond < 0 ? zip_file_strerror(opened.get()) : "longer than announced");
    return content;
}

void NpzArchive::fail(const std::string & name, const std::string & problem) const {
    throw Error(ErrorCode::invalid_input, file_.string() + ": array " + name + ": " + problem);
}

}  // namespace harp::decoding
