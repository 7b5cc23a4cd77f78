#include "flags/preset.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "flags/effective_options.h"
#include "flags/files.h"
#include "harp/error.h"

namespace harp::cli {

using nlohmann::json;

namespace {

/// Takes one member of the object of options. @throws Error{invalid_input}, Error{invalid_option}
void take(Preset & preset, const std::string & name, const json & value) {
    const auto refuse = [&](const char * why) {
        throw Error(ErrorCode::invalid_input, fmt::format("harp.{}: {}{}", name, value.dump(), why));
    };
    if (name == "enabled") {
        if (!value.is_boolean()) refuse("; allowed: true, false");
        preset.enabled = value;
    } else if (name == "negative_prompt") {
        if (!value.is_string()) refuse(" is not a string");
        preset.negative_prompt = value;
    } else {
        if (!value.is_string() && !value.is_number()) refuse(" is neither a number nor a string");
        set_option(preset.options, name,
                   value.is_string() ? value.get<std::string>() : text_of_number(value.get<double>(), value.dump()));
        preset.names.insert(name);
    }
}

Preset preset_of(const json & file) {
    if (!file.is_object() || !file.contains("harp") || !file["harp"].is_object())
        throw Error(ErrorCode::invalid_input, "not a JSON object with an object \"harp\" of options");
    Preset preset;
    const std::vector<std::string_view> known = names_in_json();
    for (const auto & [name, value] : file["harp"].items()) {
        check_name(name, known);
        take(preset, name, value);
    }
    validate(preset.options);
    return preset;
}

}  // namespace

Preset read_preset(const std::string & path) {
    std::ifstream file = open_file("preset", path);
    try {
        return preset_of(json::parse(file));
    } catch (const json::parse_error & error) {
        throw Error(ErrorCode::invalid_input,
                    fmt::format("preset '{}': not JSON (broken or cut off at byte {})", path, error.byte));
    } catch (const json::out_of_range &) {
        throw Error(ErrorCode::invalid_input, fmt::format("preset '{}': a number that is too large", path));
    } catch (const Error & error) {
        throw Error(ErrorCode::invalid_input, fmt::format("preset '{}': {}", path, error.what()));
    }
}

}  // namespace harp::cli
