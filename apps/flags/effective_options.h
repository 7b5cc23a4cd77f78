// The options in effect, for people and for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harp/options.h"

namespace harp::cli {

/// {"enabled": true, "threshold": 1, ...}; {"enabled": false} without options.
[[nodiscard]] nlohmann::json options_json(const std::optional<Options> & options);
/// The names that an object of options may have, in a preset or a request: those of the options, enabled, negative_prompt.
[[nodiscard]] std::vector<std::string_view> names_in_json();
/// A number of a preset or a request, as set_option() reads it: in JSON 7.0 is an integer too.
/// @param written the number as it is written
[[nodiscard]] std::string text_of_number(double number, const std::string & written);
/// "threshold=1 beta=0.5 ..."; "off" without options.
[[nodiscard]] std::string options_text(const std::optional<Options> & options);

}  // namespace harp::cli
