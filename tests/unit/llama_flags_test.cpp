// Each flag of llama.cpp works in a command or is refused by name, so that a decision is made about every flag.
#include "flags/llama_flags.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "arg.h"
#include "flags/command_line.h"

namespace harp::testing {
namespace {

using cli::FlagUse;
using cli::use_of_flag;

std::vector<common_arg> flags_of_llama() {
    common_params params;
    return common_params_parser_init(params, LLAMA_EXAMPLE_CLI).options;
}

/// The parser's message about a flag; empty if it is accepted.
std::string refusal(const std::string & command, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {command, "-m", HARP_SOURCE_DIR "/README.md"});
    std::vector<char *> argv;
    for (std::string & argument : arguments) argv.push_back(argument.data());
    cli::CommandLine line(command, "", "");
    common_params params;
    try {
        EXPECT_EQ(line.parse(static_cast<int>(argv.size()), argv.data(), params), std::nullopt);
        return "";
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_option);
        return error.what();
    }
}

TEST(LlamaFlags, AreAllDecided) {
    const auto flags = flags_of_llama();
    ASSERT_GT(flags.size(), 150U);
    for (const common_arg & flag : flags) {
        const std::vector<std::string> names = flag.get_args();
        for (const std::string & name : names) {
            EXPECT_NE(use_of_flag("generate", name, names), FlagUse::unknown)
                << name << " is new in llama.cpp: say in apps/flags/llama_flags.cpp in which commands it works";
        }
    }
}

TEST(LlamaFlags, InTheTableAreLlamas) {
    const auto flags = flags_of_llama();
    auto named = cli::flags_in_table();
    for (const std::string_view name : named) {
        EXPECT_TRUE(std::any_of(flags.begin(), flags.end(),
                                [&](const common_arg & flag) {
                                    const auto names = flag.get_args();
                                    return std::find(names.begin(), names.end(), name) != names.end();
                                }))
            << name << " is no flag of llama.cpp any more";
    }
    std::sort(named.begin(), named.end());
    EXPECT_EQ(std::adjacent_find(named.begin(), named.end()), named.end()) << "named twice";
}

TEST(LlamaFlags, ThatDoNothingAreRefusedByName) {
    for (const std::string_view view : cli::commands_with_llama_flags()) {
        const std::string command(view);
        SCOPED_TRACE(command);
        for (const common_arg & flag : flags_of_llama()) {
            for (const std::string & name : flag.get_args()) {
                if (use_of_flag(command, name, flag.get_args()) == FlagUse::works) continue;
                const std::string text = refusal(command, {name, "1", "1"});
                EXPECT_NE(text.find("'" + name + "'"), std::string::npos) << text;
                EXPECT_NE(text.find(command == "python" ? "not among a Model's flags" : "not in harp " + command),
                          std::string::npos)
                    << text;
            }
        }
    }
    EXPECT_NE(refusal("generate", {"--image", "cat.png"}), "");
    EXPECT_NE(refusal("generate", {"--context_shift"}), "");  // - or _, as in llama.cpp
    EXPECT_NE(refusal("score", {"--temp", "0"}), "");
    EXPECT_NE(refusal("python", {"--temp", "0"}), "");
    EXPECT_EQ(refusal("generate", {"--temp", "0", "--no-context-shift", "-c", "64", "--no-mmproj", "-ngl", "0"}), "");
    EXPECT_EQ(refusal("python", {"--mirostat", "2", "-b", "16"}), "");
}

}  // namespace
}  // namespace harp::testing
