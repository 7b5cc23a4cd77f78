// What a model is known by: the SHA-256 of all of its files' content, read once as long as the files do not change.
#pragma once

#include <string>
#include <vector>

namespace harp::cli {

/// SHA-256 of a file's content, as `sha256sum` prints it. Kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache, harp/sha256) with
/// path, size, times and inode, so that a large file that has not changed is read once; a file of the last seconds, whose next change
/// its times may not show, is not kept. A cache that cannot be written is done without. Shows its progress on a terminal.
/// @throws Error{io} naming the file
[[nodiscard]] std::string content_hash(const std::string & path);

/// All files of a model, in their order: of `model-00001-of-00003.gguf` three, else the one named.
[[nodiscard]] std::vector<std::string> model_files(const std::string & path);

/// A model's content_hash(); of a model in several files, the SHA-256 of theirs, one on a line. @throws Error{io}
[[nodiscard]] std::string model_fingerprint(const std::string & path);

}  // namespace harp::cli
