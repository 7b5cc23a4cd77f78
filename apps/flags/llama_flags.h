// Which of llama.cpp's flags each command accepts. It refuses all others by name, so that no flag is silently ignored.
#pragma once

#include <string>
#include <string_view>
#include <vector>

struct common_arg;

namespace harp::cli {

/// What is known about a flag of llama.cpp.
enum class FlagUse {
    works,    ///< has an effect in this command
    refused,  ///< known, and has no effect in this command
    unknown,  ///< not in the table yet (another llama.cpp): refused too
};
/// @param command "generate", ...; "python" stands for a Model
/// @param given   the flag's name as the user wrote it: "--no-mmproj" can have an effect where "--mmproj" has none
/// @param names   all of the flag's names
[[nodiscard]] FlagUse use_of_flag(std::string_view command, std::string_view given,
                                  const std::vector<std::string> & names);
/// All commands that accept flags of llama.cpp, except serve, which accepts all of the server's.
[[nodiscard]] const std::vector<std::string_view> & commands_with_llama_flags();
/// All flags in the table, for the test that compares it with llama.cpp's parser.
[[nodiscard]] std::vector<std::string_view> flags_in_table();

}  // namespace harp::cli
