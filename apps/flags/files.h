// Files that the user names, checked so that an error names the file and its fault.
#pragma once

#include <fstream>
#include <string>

namespace harp::cli {

/// Opens a file to read it.
/// @param what what the file is, for messages: "preset"
/// @throws Error{invalid_input}: "preset 'preset.json': No such file or directory"
[[nodiscard]] std::ifstream open_file(const std::string & what, const std::string & path);

/// Removes the mark of UTF-8 (U+FEFF) that some editors write at the beginning of a file.
void remove_byte_order_mark(std::string & text);

/// Checks that a file can be written, before the work whose result it gets. Creates and changes nothing.
/// @param what names the flag: "option '--plot':"
/// @throws Error{io}
void check_writable(const std::string & what, const std::string & path);

/// Writes a file whole or not at all: a file that is there keeps its content until the new one is written. What is no
/// plain file, such as a device or a link, is written in place.
/// @param what what the file is, for messages: "preset"
/// @throws Error{io}
void write_file(const std::string & what, const std::string & path, const std::string & text);

}  // namespace harp::cli
