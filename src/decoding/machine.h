// What a measurement says about the machine it was made on.
#pragma once

#include <fstream>
#include <string>

namespace harp::decoding {

/// The processor's name as Linux knows it, or "unknown".
[[nodiscard]] inline std::string cpu_model() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    }
    return "unknown";
}

}  // namespace harp::decoding
