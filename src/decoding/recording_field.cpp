#include "decoding/recording_field.h"

#include <fstream>
#include <sstream>

namespace harp::decoding {

json parse_json_file(const std::filesystem::path & file) {
    std::ifstream stream(file, std::ios::binary);
    if (!std::filesystem::exists(file)) throw Error(ErrorCode::io, file.string() + ": no such file");
    std::ostringstream content;
    // a directory can be opened, but not read
    const bool is_open = stream && !std::filesystem::is_directory(file);
    content << stream.rdbuf();  // fails for an empty file too
    if (!is_open || stream.bad()) throw Error(ErrorCode::io, file.string() + ": cannot be read");
    if (content.view().empty()) throw Error(ErrorCode::io, file.string() + ": empty");
    try {
        return json::parse(content.view());
    } catch (const json::parse_error & e) {
        throw Error(ErrorCode::invalid_input,
                    file.string() + ": not a JSON file (broken or cut off at byte " + std::to_string(e.byte) + ")");
    } catch (const json::exception & e) {
        throw Error(ErrorCode::invalid_input, file.string() + ": not a JSON file: " + e.what());
    }
}

std::vector<llama_token> read_tokens(const Field & list, int32_t n_vocab) {
    std::vector<llama_token> tokens;
    for (const Field & token : list.elements()) tokens.push_back(token.integer(0, n_vocab - 1));
    return tokens;
}

}  // namespace harp::decoding
