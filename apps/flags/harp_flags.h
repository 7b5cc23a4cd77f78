// The --harp- flags, which all subcommands and the server have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flags/preset.h"
#include "harp/error.h"
#include "harp/options.h"

namespace harp::cli {

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

/// The --harp- flags: one for each row of option_table(), and --harp-preset, --harp-negative-prompt, --harp-n-ctx-twin,
/// --harp-off, --harp-kernels.
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
    /// The text that the view `guidance` reads instead of the prompt: from the flag, or from the preset if one of `sets`
    /// has that view. "" if neither has one, and with HARP off.
    [[nodiscard]] std::string negative_prompt(std::span<const Options> sets) const;
    /// The same for options().
    [[nodiscard]] std::string negative_prompt() const;
    /// Refuses --harp-negative-prompt if no options read it. @throws Error{invalid_option}
    void check_negative_prompt(std::span<const Options> sets) const;
    /// For commands that do not use it. @throws Error{invalid_option} if the flag was given
    void refuse_negative_prompt(std::string_view command) const;
    /// The same for that of a preset.
    void refuse_negative_prompt_of_preset(std::string_view command) const;
    /// ForwardPass's n_ctx_twin: the flag's, or 0.
    [[nodiscard]] uint32_t n_ctx_twin() const { return n_ctx_twin_.value_or(0); }
    /// The same for a pass whose sequences have these options only: without the flag what their view needs, as far as that
    /// is known.
    [[nodiscard]] uint32_t n_ctx_twin_for(const std::optional<Options> & options) const;
    /// For commands that do not use it. @throws Error{invalid_option} if the flag was given
    void refuse_n_ctx_twin(std::string_view command) const;
    /// Refuses an option that the command sets itself, if it was given as flag or environment variable.
    /// @param why what to do instead
    /// @throws Error{invalid_option}
    void refuse(std::string_view name, std::string_view why) const;
    /// Refuses a preset that sets one of these options. @throws Error{invalid_option}
    void refuse_in_preset(std::span<const char * const> names, std::string_view why) const;
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
    std::optional<uint32_t> n_ctx_twin_;
    bool off_ = false;
    std::string kernels_;  // "" if it was not given
};

/// The kernels that set_kernels() chose for this process: their instructions, or "llama.cpp's"; "" before it.
[[nodiscard]] const std::string & kernels_in_use();

}  // namespace harp::cli
