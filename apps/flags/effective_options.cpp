#include "flags/effective_options.h"

#include <fmt/format.h>

#include <cmath>

namespace harp::cli {

using nlohmann::json;

json options_json(const std::optional<Options> & options) {
    if (!options) return {{"enabled", false}};
    json result = {{"enabled", true}};
    for (const OptionInfo & info : option_table()) {
        const std::string text = get_option(*options, info.name);
        const json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
        result[std::string(info.name)] = value.is_number() ? value : json(text);  // words, and "inf", as strings
    }
    return result;
}

std::vector<std::string_view> names_in_json() {
    std::vector<std::string_view> names = {"enabled", "negative_prompt"};
    for (const OptionInfo & info : option_table()) names.push_back(info.name);
    return names;
}

std::string text_of_number(double number, const std::string & written) {
    constexpr double exact = 9007199254740992;  // 2^53; seeds above it are written as integers
    const bool is_whole = std::trunc(number) == number && std::abs(number) <= exact;
    return is_whole ? fmt::format("{:.0f}", number) : written;
}

std::string options_text(const std::optional<Options> & options) {
    if (!options) return "off";
    std::string text;
    for (const OptionInfo & info : option_table()) {
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", info.name, get_option(*options, info.name));
    }
    return text;
}

}  // namespace harp::cli
