// harp: llama.cpp with a forward pass that hesitates. Chooses the subcommand; turns errors into one line and an exit
// code.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "commands.h"
#include "flags/command_line.h"
#include "flags/terminal.h"
#include "harp/error.h"
#include "llama.h"
#include "log.h"
#include "model/interrupt.h"

namespace harp::cli {
namespace {

/// Replaces the process by harp-server, a separate program, so that this one does not contain the server.
int serve_command(int /*argc*/, char ** argv) {
    std::error_code unused;
    const auto server = std::filesystem::read_symlink("/proc/self/exe", unused).parent_path() / "harp-server";
    execv(server.c_str(), argv);
    throw Error(ErrorCode::invalid_input, fmt::format("cannot start {}: {} (it is the build's target harp_server)",
                                                      server.string(), std::strerror(errno)));
}

struct Command {
    std::string_view name;
    std::string_view summary;
    int (*run)(int, char **);
};

constexpr std::array<Command, 9> commands = {{
    {"generate", "answer or continue a prompt; hesitating tokens are coloured", generate_command},
    {"chat", "talk with the model, several turns", chat_command},
    {"compare", "one prompt, vanilla and HARP side by side", compare_command},
    {"score", "log-likelihood and perplexity of a text, vanilla and HARP paired", score_command},
    {"bench", "vanilla, HARP, beam search, speculation: cost and output in one table", bench_command},
    {"calibrate", "which second look helps this model on your examples; a threshold for a share or a cost",
     calibrate_command},
    {"verify", "replay recorded runs of the authors' code and compare every step", verify_command},
    {"serve", "llama.cpp's HTTP server (OpenAI's API and more), with HARP", serve_command},
    {"info", "the model, what HARP can do with it, effective options, build", info_command},
}};

std::string usage() {
    std::string text = fmt::format(
        "harp {}: language models that look twice when they hesitate\n\nUsage: harp COMMAND [FLAGS]\n\nCommands:\n",
        HARP_VERSION);
    for (const Command & command : commands) text += fmt::format("  {:<10} {}\n", command.name, command.summary);
    return text +
           "\n`harp COMMAND --help` explains a command. llama.cpp's flags work where they apply.\n"
           "A question in quotes instead of a command is answered: harp \"Why is the sky blue?\"\n"
           "First steps:\n"
           "  harp generate -m model.gguf -p \"Why is the sky blue?\"\n"
           "  harp compare  -m model.gguf -p \"Why is the sky blue?\"\n";
}

int run_command(const Command & command, int argc, char ** argv) {
    if (command.run == serve_command) return serve_command(argc, argv);  // the server handles signals itself
    install_interrupt_handlers();
    llama_backend_init();
    const int code = command.run(argc, argv);
    common_log_flush(common_log_main());
    llama_backend_free();
    return code;
}

/// Words in quotes where a command was expected.
bool is_question(std::string_view text) {
    return !text.starts_with('-') && (text.ends_with('?') || text.find_first_of(" \t\n") != std::string_view::npos);
}

/// harp "QUESTION" FLAGS stands for harp generate -p "QUESTION" FLAGS
int answer_question(int argc, char ** argv) {
    std::string command = "generate", flag = "-p";
    std::vector<char *> arguments = {command.data(), flag.data()};
    arguments.insert(arguments.end(), argv + 1, argv + argc);
    const int n_arguments = static_cast<int>(arguments.size());
    arguments.push_back(nullptr);
    return run_command(commands.front(), n_arguments, arguments.data());
}

int run(int argc, char ** argv) {
    const std::string_view name = argc > 1 ? argv[1] : "";
    if (name.empty()) {
        print_err("{}", usage());
        return exit_usage;
    }
    if (name == "--help" || name == "-h" || name == "help") {
        write_out(usage());
        return exit_ok;
    }
    if (name == "--version") {
        write_out(version_text() + "\n");
        return exit_ok;
    }
    const auto * command =
        std::find_if(commands.begin(), commands.end(), [&](const Command & c) { return c.name == name; });
    if (command != commands.end()) return run_command(*command, argc - 1, argv + 1);
    if (is_question(name)) return answer_question(argc, argv);
    if (name.starts_with('-')) {
        throw Error(ErrorCode::invalid_input,
                    fmt::format("flag '{0}' without a command; put a command before it: harp generate {0} ...", name));
    }
    std::string names;
    for (const Command & c : commands) names += fmt::format("{}{}", names.empty() ? "" : ", ", c.name);
    throw Error(ErrorCode::invalid_input, fmt::format("unknown command '{}'; commands: {}", name, names));
}

/// "harp generate", or "harp" if no command was named.
std::string program_name(int argc, char ** argv) {
    const bool is_command =
        argc > 1 && std::any_of(commands.begin(), commands.end(), [&](const Command & c) { return c.name == argv[1]; });
    return is_command ? fmt::format("harp {}", argv[1]) : "harp";
}

int main_command(int argc, char ** argv) {
    try {
        return run(argc, argv);
    } catch (const Error & error) {
        if (error.code() == ErrorCode::aborted) {
            print_err("\n{}: interrupted\n", program_name(argc, argv));
            return exit_code_of(error);
        }
        print_err("{}{}: {}\n", can_erase_lines(stderr) ? "\r\033[K" : "", program_name(argc, argv), error.what());
        return exit_code_of(error);
    } catch (const std::exception & error) {
        print_err("{}: {}\n", program_name(argc, argv), error.what());
        return exit_failure;
    }
}

}  // namespace
}  // namespace harp::cli

int main(int argc, char ** argv) {
    return harp::cli::main_command(argc, argv);
}
