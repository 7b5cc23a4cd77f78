// Texts of error messages.
#pragma once

#include <string>
#include <string_view>

namespace harp {

/// An input as messages repeat it: whole, or its beginning. It may come from a request and be of any length.
[[nodiscard]] inline std::string shortened(std::string_view input) {
    constexpr size_t most = 64;
    if (input.size() <= most) return std::string(input);
    size_t end = most;
    while (end > 0 && (static_cast<unsigned char>(input[end]) & 0xC0) == 0x80) --end;  // not inside a character
    return std::string(input.substr(0, end)) + "...";
}

}  // namespace harp
