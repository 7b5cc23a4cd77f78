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
/// "threshold=1 beta=0.5 ..."; "off" without options.
[[nodiscard]] std::string options_text(const std::optional<Options> & options);

}  // namespace harp::cli
