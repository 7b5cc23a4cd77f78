// A preset: HARP options in a file, as harp calibrate writes them and every program reads them (--harp-preset).
//
//   {"harp": {"view": "last", "threshold": 2, "beta": 2}, ...}     options that are not named have their defaults;
//                                                                 beside "harp" stands whatever its writer has to say
#pragma once

#include <string>

#include "harp/options.h"

namespace harp::cli {

/// @throws Error{invalid_input} naming the file and what is wrong with it, Error{invalid_option}
[[nodiscard]] Options read_preset(const std::string & path);

}  // namespace harp::cli
