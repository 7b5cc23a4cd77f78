// A preset: HARP options in a file, as harp calibrate writes it and every program reads it (--harp-preset).
//
//   {"harp": {"view": "last", "threshold": 2, "beta": 2}, ...}     options that are not named have their defaults; there may
//                                                                 be a "negative_prompt", and "enabled": false switches
//                                                                 HARP off; members beside "harp" are ignored
#pragma once

#include <set>
#include <string>

#include "harp/options.h"

namespace harp::cli {

struct Preset {
    bool enabled = true;
    Options options;
    std::set<std::string> names;  ///< of the options that the file sets
    std::string negative_prompt;  ///< text; "" if there is none
};
/// @throws Error{invalid_input} naming the file and its fault
[[nodiscard]] Preset read_preset(const std::string & path);

}  // namespace harp::cli
