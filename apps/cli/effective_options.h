// The options in effect, for people and for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "harp/options.h"

namespace harp::cli {

/// {"enabled": true, "threshold": 1, ...}; {"enabled": false} without options.
[[nodiscard]] nlohmann::json options_json(const std::optional<Options> & options);
/// "threshold=1 beta=0.5 ..."; "off" without options.
[[nodiscard]] std::string options_text(const std::optional<Options> & options);

}  // namespace harp::cli
