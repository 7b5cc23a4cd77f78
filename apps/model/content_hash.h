// Identifies a model by the SHA-256 of the content of all its files, which are read once as long as they do not change.
#pragma once

#include <string>
#include <vector>

namespace harp::cli {

/// SHA-256 of a file's content, as `sha256sum` prints it. It is kept in the user's cache folder ($XDG_CACHE_HOME or
/// ~/.cache, harp/sha256) with path, size, times and inode, so that a large unchanged file is read only once. Not kept
/// for a file changed in the last seconds, since a further change might not alter its times. A cache that cannot be
/// written is not used. Shows its progress on a terminal.
/// @throws Error{io} naming the file
[[nodiscard]] std::string content_hash(const std::string & path);

/// All files of a model, in order: three for `model-00001-of-00003.gguf`, unless it says that it is a whole model; else
/// the named one.
[[nodiscard]] std::vector<std::string> model_files(const std::string & path);

/// A model's content_hash(). For a model in several files: the SHA-256 of their hashes, one per line. @throws Error{io}
[[nodiscard]] std::string model_fingerprint(const std::string & path);

}  // namespace harp::cli
