// The command line of a subcommand. CLI11 parses our own flags, llama.cpp's parser all others.
#pragma once

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common.h"
#include "harp/error.h"
#include "harp/options.h"
#include "preset.h"

namespace harp::cli {

/// Exit codes of the program.
enum ExitCode { exit_ok = 0, exit_failure = 1, exit_usage = 2, exit_interrupted = 130 };

/// The exit code for an error: the user's fault, interrupted, or any other.
[[nodiscard]] ExitCode exit_code_of(const Error & error) noexcept;

/// "harp 0.1.0 (llama.cpp ...)"
[[nodiscard]] std::string version_text();

/// Calls `set` and adds the flag to its error.
template <class Function>
void naming_flag(const std::string & flag, Function set) {
    try {
        set();
    } catch (const Error & error) {
        throw Error(error.code(), flag + ": " + error.what());
    }
}

/// The flag of an option: --harp-view-tokens for view_tokens.
[[nodiscard]] std::string flag_of(std::string_view option);

/// Parses our own flags. @return an exit code if help was printed or a flag was wrong, else nullopt
[[nodiscard]] std::optional<int> parse_flags(CLI::App & app, std::vector<std::string> arguments);

/// The --harp- flags: one for each row of option_table(), and --harp-preset, --harp-negative-prompt, --harp-off,
/// --harp-kernels.
class HarpFlags {
  public:
    void add_to(CLI::App & app);
    /// Reads the preset, once: it may be a pipe. Comes after parsing and before all that follows.
    /// @throws Error{invalid_input} of read_preset()
    void read_files();
    /// The options, or nullopt if --harp-off or the preset switches HARP off. Flags override the preset's options.
    /// @throws Error{invalid_option} naming field, value and range
    [[nodiscard]] std::optional<Options> options() const;
    /// What switched HARP off, for messages: "--harp-off", or the preset by name.
    [[nodiscard]] std::string switched_off_by() const;
    /// The text that the view `guidance` reads instead of the prompt: from the flag, or from the preset if its view is not
    /// overridden. "" if neither has one, and with HARP off.
    [[nodiscard]] std::string negative_prompt() const;
    /// Refuses --harp-negative-prompt if no options read it. @throws Error{invalid_option}
    void check_negative_prompt(std::span<const Options> sets) const;
    /// For commands that do not use it. @throws Error{invalid_option} if the flag was given
    void refuse_negative_prompt(std::string_view command) const;
    /// Refuses an option that the command sets itself, if it was given as flag or environment variable.
    /// @param why what to do instead
    /// @throws Error{invalid_option}
    void refuse(std::string_view name, std::string_view why) const;
    /// Sets whether models are loaded with our own kernels or llama.cpp's (harp/kernels.h).
    /// @throws Error{invalid_option} for instructions that this processor lacks
    void set_kernels() const;
    /// The value of --harp-kernels, or its default.
    [[nodiscard]] std::string kernels() const;
    /// Sets the environment variables to match options(), for processes that this one starts.
    void export_to_environment() const;

  private:
    [[nodiscard]] bool is_off() const { return off_ || !preset_.enabled; }

    std::map<std::string, std::string> values_;
    std::string preset_path_, negative_prompt_;
    Preset preset_;
    bool off_ = false;
    std::string kernels_;  // "" if it was not given
};

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
