// The command line of a subcommand. CLI11 parses our own flags, llama.cpp's parser all others.
#pragma once

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common.h"
#include "flags/harp_flags.h"
#include "harp/error.h"

namespace harp::cli {

/// Exit codes of the program.
enum ExitCode { exit_ok = 0, exit_failure = 1, exit_usage = 2, exit_interrupted = 130 };

/// The exit code for an error: the user's fault, interrupted, or any other.
[[nodiscard]] ExitCode exit_code_of(const Error & error) noexcept;

/// "harp 0.1.0 (llama.cpp ...)"
[[nodiscard]] std::string version_text();

/// Checks that a flag's value is a number from `low` to `high`. CLI11's own Range lets NaN through.
[[nodiscard]] CLI::Validator number_in(double low, double high);

/// Parses our own flags. @return an exit code if help was printed or a flag was wrong, else nullopt
[[nodiscard]] std::optional<int> parse_flags(CLI::App & app, std::vector<std::string> arguments);

/// A subcommand's parser: gives our flags and llama.cpp's to the right parser. Refuses flags of llama.cpp that would
/// have no effect in the command (llama_flags.h).
class CommandLine {
  public:
    /// @param flags_of whose flags to accept, of llama.cpp's programs; those of its CLI include chat templates and
    ///                 speculation
    CommandLine(const std::string & name, const std::string & description, const std::string & example,
                llama_example flags_of = LLAMA_EXAMPLE_CLI);

    CLI::App app;
    HarpFlags harp;

    /// Parses. @return an exit code if the program should end now (help was printed, or a flag was wrong), else nullopt
    [[nodiscard]] std::optional<int> parse(int argc, char ** argv, common_params & params);

    /// Whether the user gave one of llama.cpp's flags, by any of the names listed.
    [[nodiscard]] bool has_llama_flag(std::initializer_list<const char *> names) const;

    /// Refuses llama.cpp's flags that were given here and would not work in `command`.
    /// @throws Error{invalid_option} naming one, and why
    void refuse_flags_not_in(const std::string & command, std::string_view why) const;

    /// The arguments for llama.cpp's parser as an argv, with the program's name at [0]; valid until the next parse().
    [[nodiscard]] std::vector<char *> llama_argv();

  private:
    std::vector<std::string> split(int argc, char ** argv);
    void parse_llama_flags(common_params & params);
    void add_default_model();
    [[nodiscard]] bool names_remote_model() const;
    [[nodiscard]] bool names_several_models() const;

    std::string command_;
    llama_example flags_of_;
    std::optional<std::string> colour_;  // --color's value
    bool help_llama_ = false;
    std::vector<std::string> llama_arguments_;  // [0] is the program's name
    std::set<std::string> llama_flags_;         // those that were given, without values
};

}  // namespace harp::cli
