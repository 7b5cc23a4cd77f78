#include "flags/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <utility>

#include "arg.h"
#include "flags/captured_stderr.h"
#include "flags/llama_flags.h"
#include "flags/llama_values.h"
#include "flags/terminal.h"
#include "llama.h"
#include "log.h"

namespace harp::cli {

namespace {

bool is_set(const char * environment_variable) {
    const char * value = std::getenv(environment_variable);
    return value != nullptr && *value != '\0';
}

/// The flags that llama.cpp's parser knows.
class LlamaFlags {
  public:
    LlamaFlags(common_params & params, llama_example flags_of)
        : options_(common_params_parser_init(params, flags_of).options) {
        for (const common_arg & option : options_) {
            for (const std::string & name : option.get_args()) by_name_[name] = &option;
        }
    }
    LlamaFlags(const LlamaFlags &) = delete;
    LlamaFlags & operator=(const LlamaFlags &) = delete;

    /// llama.cpp accepts --n_predict for --n-predict.
    static std::string normal_name(std::string name) {
        if (name.rfind("--", 0) == 0) std::replace(name.begin(), name.end(), '_', '-');
        return name;
    }
    [[nodiscard]] const common_arg * find(const std::string & argument) const {
        const auto found = by_name_.find(normal_name(argument));
        return found == by_name_.end() ? nullptr : found->second;
    }
    static int n_values(const common_arg & option) {
        if (option.handler_str_str != nullptr) return 2;
        return option.handler_string != nullptr || option.handler_int != nullptr ? 1 : 0;
    }

    /// llama.cpp's help for the flags that a command accepts, and the names of the others.
    [[nodiscard]] std::string help(const std::string & command) {
        std::string text, refused;
        for (common_arg & option : options_) {
            const std::vector<std::string> names = option.get_args();
            const auto works = [&](const auto & name) { return use_of_flag(command, name, names) == FlagUse::works; };
            const bool any_works = std::any_of(names.begin(), names.end(), works);
            if (any_works) text += option.to_string();
            if (!any_works) refused += fmt::format("{}{}", refused.empty() ? "" : ", ", names.back());
        }
        return fmt::format("{}\nNot in harp {}: {}\n", text, command, refused);
    }

    /// Checks the environment variables of those flags for which `works(flag's names)`.
    template <class Works>
    void check_environment(Works works) const {
        std::string value;
        for (const common_arg & option : options_) {
            const bool takes_value = n_values(option) == 1;
            if (!takes_value || !option.get_value_from_env(value) || !works(option.get_args())) continue;
            check_value(fmt::format("environment variable '{}'", option.env), option, value);
        }
    }

  private:
    std::vector<common_arg> options_;
    std::map<std::string, const common_arg *> by_name_;
};

/// @throws Error{invalid_option} if the flag would have no effect in this command
void check_use(const std::string & command, const std::string & given, const common_arg & flag) {
    if (use_of_flag(command, LlamaFlags::normal_name(given), flag.get_args()) == FlagUse::works) return;
    if (command == "python") {
        throw Error(
            ErrorCode::invalid_option,
            fmt::format("option '{}': not among a Model's flags; see the arguments of Model and Session", given));
    }
    common_params unused;
    const bool serve_has_it = LlamaFlags(unused, LLAMA_EXAMPLE_SERVER).find(given) != nullptr;
    throw Error(ErrorCode::invalid_option,
                fmt::format("option '{}': not in harp {}{}; --help-llama lists the flags that are", given, command,
                            serve_has_it ? " (but in harp serve)" : ""));
}

/// The first line of llama.cpp's message, without "error: " and without the names of C++ functions that threw.
std::string first_line(const std::string & text) {
    static const std::regex prefix("^error: ");
    static const std::regex option("^error while handling argument \"(.*?)\": ");
    static const std::regex conversion(": sto[a-z]+$");
    std::string line = text.substr(0, text.find('\n'));
    line = std::regex_replace(line, prefix, "");
    line = std::regex_replace(line, option, "option '$1': ");
    return std::regex_replace(line, conversion, ": not a number, or too large");
}

}  // namespace

ExitCode exit_code_of(const Error & error) noexcept {
    switch (error.code()) {
        case ErrorCode::invalid_option:
        case ErrorCode::invalid_input: return exit_usage;
        case ErrorCode::aborted: return exit_interrupted;
        default: return exit_failure;
    }
}

std::string version_text() {
    return fmt::format("harp {} (llama.cpp {})", HARP_VERSION, llama_version());
}

CLI::Validator number_in(double low, double high) {
    const auto check = [low, high](const std::string & text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
        return fmt::format("'{}' is no number in range; allowed: {:g}..{:g}", text, low, high);
    };
    return {check, ""};
}

std::optional<int> parse_flags(CLI::App & app, std::vector<std::string> arguments) {
    try {
        std::reverse(arguments.begin(), arguments.end());  // CLI11 reads them from the end
        app.parse(std::move(arguments));
    } catch (const CLI::CallForHelp &) {
        write_out(app.help());
        return exit_ok;
    } catch (const CLI::CallForVersion &) {
        write_out(version_text() + "\n");
        return exit_ok;
    } catch (const CLI::ParseError & error) {
        std::string text = error.what();
        if (const size_t excess = text.find(": At Most 1 required"); excess != std::string::npos)
            text = text.substr(0, excess) + " is given more than once";
        // numbers are checked before they are converted, so that this is a flag such as --json=perhaps
        if (dynamic_cast<const CLI::ConversionError *>(&error) != nullptr) text += "; allowed: true, false";
        throw Error(ErrorCode::invalid_option, fmt::format("{} (--help lists the flags)", text));
    }
    return std::nullopt;
}

CommandLine::CommandLine(const std::string & name, const std::string & description, const std::string & example,
                         llama_example flags_of)
    : app(description, "harp " + name), command_(name), flags_of_(flags_of) {
    app.set_help_flag("-h,--help", "show this help");
    app.set_version_flag("--version", version_text());
    app.add_flag("--help-llama,--usage", help_llama_, "show the flags of llama.cpp that work here");
    app.footer(
        "llama.cpp's flags work as in llama.cpp; those that would have no effect here are refused. For example: -m "
        "FILE, -hf REPO, -c N, -n N, -ngl N, -t N, --temp X,\n"
        "--top-p X, --seed N, --grammar TEXT, --json-schema TEXT, --lora FILE, --rpc HOSTS. --help-llama lists "
        "them.\n\n"
        "Example:\n  " +
        example);
}

std::optional<int> CommandLine::parse(int argc, char ** argv, common_params & params) {
    // no messages of llama.cpp unless asked for (-v, -lv), since errors reach the user as one line
    common_log_set_verbosity_thold(LOG_LEVEL_OUTPUT);
    if (const auto code = parse_flags(app, split(argc, argv))) return code;
    if (help_llama_ && flags_of_ != LLAMA_EXAMPLE_SERVER) {
        write_out(LlamaFlags(params, flags_of_).help(command_));
        return exit_ok;
    }
    if (help_llama_) {
        llama_arguments_.emplace_back("--help");
    } else {
        add_default_model();
    }
    harp.read_files();
    harp.set_kernels();
    parse_llama_flags(params);
    if (colour_ && *colour_ != "auto") set_colours(params.use_color);
    return std::nullopt;
}

/// Puts llama.cpp's arguments into llama_arguments_. @return ours, each value joined to its flag: "--name=value"
std::vector<std::string> CommandLine::split(int argc, char ** argv) {
    llama_arguments_ = {app.get_name()};
    std::vector<std::string> ours;
    common_params unused;
    const LlamaFlags llama_flags(unused, flags_of_);
    int next = 1;
    const auto take_value = [&](std::string_view flag) {
        if (next == argc) throw Error(ErrorCode::invalid_option, fmt::format("option '{}' needs a value", flag));
        return std::string(argv[next++]);
    };
    while (next < argc) {
        const std::string argument = argv[next++];
        const size_t equals = argument.rfind("--", 0) == 0 ? argument.find('=') : std::string::npos;
        const std::string name = argument.substr(0, equals);
        if (const CLI::Option * option = app.get_option_no_throw(LlamaFlags::normal_name(name))) {
            const bool takes_value = option->get_items_expected_max() > 0;
            if (!takes_value || equals != std::string::npos) {
                ours.push_back(LlamaFlags::normal_name(name) + argument.substr(name.size()));
            } else {
                ours.push_back(LlamaFlags::normal_name(name) + "=" + take_value(name));
            }
            if (takes_value && ours.back() == LlamaFlags::normal_name(name) + "=")
                throw Error(ErrorCode::invalid_option, fmt::format("option '{}': the value is empty", name));
        } else if (const common_arg * flag = llama_flags.find(name)) {
            if (flags_of_ != LLAMA_EXAMPLE_SERVER) check_use(command_, name, *flag);
            llama_flags_.insert(LlamaFlags::normal_name(name));
            llama_arguments_.push_back(name);
            const int n_values = LlamaFlags::n_values(*flag);
            if (equals != std::string::npos && n_values != 1) {  // llama.cpp does not know --name=value at all
                throw Error(ErrorCode::invalid_option,
                            fmt::format("option '{}': '{}'; it takes {} values, without an equals sign", name, argument,
                                        n_values == 0 ? "no" : "two"));
            }
            if (equals != std::string::npos) {
                llama_arguments_.push_back(argument.substr(equals + 1));
            } else {
                for (int i = 0; i < n_values; ++i) llama_arguments_.push_back(take_value(name));
            }
            check_value(fmt::format("option '{}'", name), *flag, llama_arguments_.back());
            if (name == "-co" || name == "--color") colour_ = llama_arguments_.back();
        } else {
            throw Error(
                ErrorCode::invalid_option,
                fmt::format("unknown option '{}' (--help lists ours, --help-llama those of llama.cpp)", argument));
        }
    }
    return ours;
}

bool CommandLine::names_remote_model() const {
    return has_llama_flag({"-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo",
                           "--gpt-oss-20b-default", "--gpt-oss-120b-default", "--vision-gemma-4b-default",
                           "--vision-gemma-12b-default"}) ||
           is_set("LLAMA_ARG_MODEL_URL") || is_set("LLAMA_ARG_HF_REPO") || is_set("LLAMA_ARG_DOCKER_REPO");
}

/// If so, the server is a router: it starts a server for each model that is asked for. Without these flags and without
/// a model it does so for each model in llama.cpp's cache.
bool CommandLine::names_several_models() const {
    return has_llama_flag({"--models-dir", "--models-preset"}) || is_set("LLAMA_ARG_MODELS_DIR") ||
           is_set("LLAMA_ARG_MODELS_PRESET");
}

void CommandLine::add_default_model() {
    if (names_remote_model() || has_llama_flag({"-m", "--model"}) || is_set("LLAMA_ARG_MODEL")) return;
    const bool has_default = is_set("HARP_DEFAULT_MODEL");
    if (flags_of_ == LLAMA_EXAMPLE_SERVER && (names_several_models() || !has_default)) return;  // a router
    if (!has_default)
        throw Error(ErrorCode::invalid_option, "no model: give -m FILE or -hf REPO, or set HARP_DEFAULT_MODEL");
    llama_arguments_.insert(llama_arguments_.end(), {"-m", std::getenv("HARP_DEFAULT_MODEL")});
}

void CommandLine::parse_llama_flags(common_params & params) {
    // a server has a log
    if (flags_of_ != LLAMA_EXAMPLE_SERVER) params.verbosity = LOG_LEVEL_OUTPUT;
    params.warmup = false;  // the self-check of a ForwardPass warms up too
    params.fit_params = llama_supports_gpu_offload();

    common_params unused;
    LlamaFlags(unused, flags_of_).check_environment([&](const std::vector<std::string> & names) {
        return flags_of_ == LLAMA_EXAMPLE_SERVER || use_of_flag(command_, names.back(), names) == FlagUse::works;
    });
    std::vector<char *> arguments = llama_argv();
    std::optional<CapturedStderr> captured;
    if (!names_remote_model()) captured.emplace();  // a download must be able to show its progress
    const bool parsed = common_params_parse(static_cast<int>(arguments.size()), arguments.data(), params, flags_of_);
    common_log_set_verbosity_thold(params.verbosity);
    if (parsed) {
        // drop remarks, and failures to open files, which we report ourselves
        if (captured && params.verbosity <= LOG_LEVEL_OUTPUT) (void)captured->take();
        check_parsed(params);
        return;
    }
    const std::string reason = captured ? first_line(captured->take()) : "llama.cpp could not read its flags";
    throw Error(ErrorCode::invalid_option, fmt::format("{} (--help-llama explains the flags of llama.cpp)", reason));
}

std::vector<char *> CommandLine::llama_argv() {
    std::vector<char *> arguments;
    for (std::string & argument : llama_arguments_) arguments.push_back(argument.data());
    return arguments;
}

bool CommandLine::has_llama_flag(std::initializer_list<const char *> names) const {
    return std::any_of(names.begin(), names.end(), [&](const char * name) { return llama_flags_.contains(name); });
}

void CommandLine::refuse_flags_not_in(const std::string & command, std::string_view why) const {
    common_params unused;
    const LlamaFlags known(unused, flags_of_);
    for (const std::string & flag : llama_flags_) {
        if (use_of_flag(command, flag, known.find(flag)->get_args()) == FlagUse::works) continue;
        throw Error(ErrorCode::invalid_option, fmt::format("option '{}': {}; leave it out", flag, why));
    }
}

}  // namespace harp::cli
