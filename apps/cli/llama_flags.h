// Which of llama.cpp's flags each command takes. All others are refused by name, so that none is taken and then does nothing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

struct common_arg;

namespace harp::cli {

/// What is known of a flag of llama.cpp's.
enum class FlagUse {
    works,    ///< in this command
    refused,  ///< known, and without effect there
    unknown,  ///< nobody has decided yet (another llama.cpp): refused too
};
/// @param command "generate", ...; "python" has the flags of a Model
/// @param given   a name of the flag, as the user wrote it: "--no-mmproj" can be of use where "--mmproj" is not
/// @param names   all its names
[[nodiscard]] FlagUse use_of_flag(std::string_view command, std::string_view given,
                                  const std::vector<std::string> & names);
/// All commands with flags of llama.cpp's, but for serve, which takes all of the server's.
[[nodiscard]] const std::vector<std::string_view> & commands_with_llama_flags();
/// All flags that the table names, for the test that holds it against llama.cpp's parser.
[[nodiscard]] std::vector<std::string_view> flags_in_table();

}  // namespace harp::cli
