#include "preset.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "harp/error.h"

namespace harp::cli {

using nlohmann::json;

Preset read_preset(const std::string & path) {
    const auto refuse = [&](const std::string & why) -> Preset {
        throw Error(ErrorCode::invalid_input, fmt::format("preset '{}': {}", path, why));
    };
    std::ifstream file(path);
    if (!file) return refuse(std::strerror(errno));
    const json preset = json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!preset.is_object() || !preset.contains("harp") || !preset["harp"].is_object())
        return refuse("not a JSON object with an object \"harp\" of options");
    Preset result;
    for (const auto & [name, value] : preset["harp"].items()) {
        if (name == "enabled") continue;  // written by options_json()
        if (name == "negative_prompt") {
            if (!value.is_string())
                return refuse(fmt::format("harp.negative_prompt: {} is not a string", value.dump()));
            result.negative_prompt = value;
            continue;
        }
        if (!value.is_string() && !value.is_number())
            return refuse(fmt::format("harp.{}: {} is neither a number nor a string", name, value.dump()));
        try {
            set_option(result.options, name, value.is_string() ? value.get<std::string>() : value.dump());
        } catch (const Error & error) {
            return refuse(error.what());
        }
    }
    validate(result.options);
    return result;
}

}  // namespace harp::cli
