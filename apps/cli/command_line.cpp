#include "command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "arg.h"
#include "harp/error.h"
#include "log.h"

namespace harp::cli {

namespace {

std::string environment_name(std::string_view option) {
    std::string name = "HARP_";
    for (const char c : option) name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return name;
}

}  // namespace

std::optional<int> parse_flags(CLI::App & app, int argc, char ** argv) {
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp &) {
        fmt::print("{}", app.help());
        return exit_ok;
    } catch (const CLI::ParseError & error) {
        fmt::print(stderr, "{}: {} (--help lists the flags)\n", app.get_name(), error.what());
        return exit_usage;
    }
    return std::nullopt;
}

void HarpFlags::add_to(CLI::App & app) {
    const char * group = "HARP (each also as environment variable HARP_NAME)";
    for (const OptionInfo & info : option_table()) {
        const std::string help = fmt::format("{} [{}; default {}]", info.meaning, info.range, info.default_value);
        app.add_option("--harp-" + std::string(info.name), values_[std::string(info.name)], help)
            ->envname(environment_name(info.name))
            ->type_name("")
            ->group(group);
    }
    app.add_flag("--harp-off", off_, "plain llama.cpp: no second pass, nothing doubled")->group(group);
}

std::optional<Options> HarpFlags::options() const {
    Options options;
    for (const auto & [name, value] : values_) {
        if (!value.empty()) set_option(options, name, value);
    }
    validate(options);
    if (off_) return std::nullopt;
    return options;
}

CommandLine::CommandLine(const std::string & name, const std::string & description, const std::string & example)
    : app(description, "harp " + name) {
    app.set_help_flag("--help", "this text");
    app.add_flag("--help-llama", help_llama_, "all flags of llama.cpp, which work here too");
    app.footer(
        "Every flag of llama.cpp works as there, for example: -m FILE, -hf REPO, -c N, -n N, -ngl N, -t N, --temp X,\n"
        "--top-p X, --seed N, --grammar TEXT, --json-schema TEXT, --lora FILE, --rpc HOSTS. --help-llama lists "
        "them.\n\n"
        "Example:\n  " +
        example);
    app.allow_extras();
}

std::optional<int> CommandLine::parse(int argc, char ** argv, common_params & params) {
    for (int i = 1; i < argc; ++i) {
        if (std::string_view(argv[i]) == "-h") {
            fmt::print("{}", app.help());
            return exit_ok;
        }
    }
    if (const auto code = parse_flags(app, argc, argv)) return code;
    const auto rest = app.remaining();
    for (const std::string & argument : rest) {
        if (argument.rfind("--harp-", 0) == 0) {
            fmt::print(stderr, "{}: unknown option '{}' (--help lists the flags)\n", app.get_name(), argument);
            return exit_usage;
        }
    }
    llama_arguments_ = {app.get_name()};
    llama_arguments_.insert(llama_arguments_.end(), rest.begin(), rest.end());
    if (help_llama_) llama_arguments_.emplace_back("--help");
    if (!parse_llama_flags(params)) return exit_usage;
    return std::nullopt;
}

bool CommandLine::parse_llama_flags(common_params & params) {
    // llama.cpp's own messages only where asked for (-v, -lv): errors reach the user as one line of ours
    common_log_set_verbosity_thold(LOG_LEVEL_OUTPUT);
    params.verbosity = LOG_LEVEL_OUTPUT;
    params.warmup = false;  // the self-check of a ForwardPass is one
    params.fit_params = llama_supports_gpu_offload();

    const bool names_model =
        has_llama_flag({"-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"}) ||
        std::getenv("LLAMA_ARG_MODEL") != nullptr || std::getenv("LLAMA_ARG_HF_REPO") != nullptr;
    const char * default_model = std::getenv("HARP_DEFAULT_MODEL");
    if (!names_model && !help_llama_) {
        if (default_model == nullptr || *default_model == '\0') {
            fmt::print(stderr, "{}: no model: give -m FILE or -hf REPO, or set HARP_DEFAULT_MODEL\n", app.get_name());
            return false;
        }
        llama_arguments_.insert(llama_arguments_.end(), {"-m", default_model});
    }

    std::vector<char *> arguments;
    for (std::string & argument : llama_arguments_) arguments.push_back(argument.data());
    const bool parsed =
        common_params_parse(static_cast<int>(arguments.size()), arguments.data(), params, LLAMA_EXAMPLE_COMPLETION);
    common_log_set_verbosity_thold(params.verbosity);
    if (!parsed) {
        fmt::print(stderr, "{}: see --help, and --help-llama for the flags of llama.cpp\n", app.get_name());
        return false;
    }
    return true;
}

bool CommandLine::has_llama_flag(std::initializer_list<const char *> names) const {
    return std::any_of(llama_arguments_.begin() + 1, llama_arguments_.end(), [&](const std::string & argument) {
        return std::any_of(names.begin(), names.end(), [&](const char * name) { return argument == name; });
    });
}

}  // namespace harp::cli
