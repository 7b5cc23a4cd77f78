// A preset: HARP options in a file, as harp calibrate writes them and every program reads them (--harp-preset).
//
//   {"harp": {"view": "last", "threshold": 2, "beta": 2}, ...}
//
// Options that are not named have their defaults. "harp" may have a "negative_prompt". Whatever stands beside "harp" is for people.
#pragma once

#include <string>

#include "harp/options.h"

namespace harp::cli {

struct Preset {
    Options options;
    std::string negative_prompt;  ///< text; "": none
};
/// @throws Error{invalid_input} naming the file and what is wrong with it, Error{invalid_option}
[[nodiscard]] Preset read_preset(const std::string & path);

}  // namespace harp::cli
