// Values of llama.cpp's flags that its parser passes over: numbers followed by something else, folders given as files, unknown samplers,
// counts out of range.
#pragma once

#include <string>

struct common_arg;
struct common_params;

namespace harp::cli {

/// Checks a value before llama.cpp parses it.
/// @param what where it is from: "option '--temp'"
/// @throws Error{invalid_option} naming it
void check_value(const std::string & what, const common_arg & option, const std::string & value);

/// Checks what llama.cpp's parser made of all flags. @throws Error{invalid_option} naming the flag
void check_parsed(const common_params & params);

}  // namespace harp::cli
