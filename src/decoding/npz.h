// Reads bit masks from a .npz archive, as numpy.savez and numpy.savez_compressed write it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

struct zip;

namespace harp::decoding {

/// An opened .npz archive of two-dimensional uint8 arrays. Not thread-safe.
class NpzArchive {
  public:
    /// @throws Error{io} if the file is missing or not readable, Error{invalid_input} if it is not a zip archive
    explicit NpzArchive(std::filesystem::path file);

    /// The array `name` (without ".npy"), row-major, [n_rows * n_columns].
    /// @throws Error{invalid_input} naming file and array, if it is missing, damaged, not uint8 or of another shape
    [[nodiscard]] std::vector<uint8_t> bytes(const std::string & name, size_t n_rows, size_t n_columns) const;

  private:
    struct Close {
        void operator()(zip * archive) const noexcept;
    };
    [[nodiscard]] std::string entry(const std::string & name, size_t largest_size) const;
    [[noreturn]] void fail(const std::string & name, const std::string & problem) const;

    std::filesystem::path file_;
    std::unique_ptr<zip, Close> archive_;
};

}  // namespace harp::decoding
