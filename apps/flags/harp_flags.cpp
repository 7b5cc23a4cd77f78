#include "flags/harp_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <limits>
#include <vector>

#include "harp/error.h"
#include "harp/kernels.h"

namespace harp::cli {

namespace {

std::string environment_name(std::string_view option) {
    std::string name = "HARP_";
    for (const char c : option) name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    return name;
}

constexpr const char * off_variable = "HARP_OFF";
constexpr const char * kernels_variable = "HARP_KERNELS";
constexpr const char * negative_prompt_variable = "HARP_NEGATIVE_PROMPT";
constexpr const char * n_ctx_twin_variable = "HARP_N_CTX_TWIN";

std::string chosen_kernels;

bool any_reads_negative_prompt(std::span<const Options> sets) {
    return std::any_of(sets.begin(), sets.end(), [](const Options & set) { return set.view == View::guidance; });
}

}  // namespace

std::string flag_of(std::string_view option) {
    std::string flag = "--harp-";
    for (const char c : option) flag += c == '_' ? '-' : c;
    return flag;
}

void HarpFlags::add_to(CLI::App & app) {
    const char * group = "HARP (each also as environment variable HARP_NAME)";
    for (const OptionInfo & info : option_table()) {
        const std::string help = fmt::format("{} [{}; default {}]", info.meaning, info.range, info.default_value);
        app.add_option(flag_of(info.name), values_[std::string(info.name)], help)
            ->envname(environment_name(info.name))
            ->type_name("")
            ->group(group);
    }
    app.add_option("--harp-preset", preset_path_,
                   "file of options, written by harp calibrate or by hand; flags override its options")
        ->envname("HARP_PRESET")
        ->type_name("FILE")
        ->group(group);
    app.add_option("--harp-negative-prompt", negative_prompt_,
                   "text that the view `guidance` reads instead of the prompt, formatted like the prompt [default the "
                   "prompt's last token]")
        ->envname(negative_prompt_variable)
        ->type_name("TEXT")
        ->group(group);
    app.add_option(
           "--harp-n-ctx-twin", n_ctx_twin_,
           "tokens that each second pass has room for; saves memory with the views `guidance` and `last` and the "
           "scope `generated` [0: as many as the first pass; default 0, in generate and score with the view "
           "`last` view_tokens]")
        ->envname(n_ctx_twin_variable)
        ->check(CLI::Range(0U, std::numeric_limits<uint32_t>::max()).description(""))
        ->type_name("N")
        ->group(group);
    app.add_flag("--harp-off", off_, "plain llama.cpp: no second pass, and no memory for one")
        ->envname(off_variable)
        ->group(group);
    app.add_option(
           "--harp-kernels", kernels_,
           "CPU kernels for quantised models: on, harp's with the best instructions of this processor; avx2, vnni or "
           "amx, harp's with these instructions; off, llama.cpp's [default on; with --harp-off, off]")
        ->envname(kernels_variable)
        ->check(CLI::IsMember({"on", "off", "avx2", "vnni", "amx"}))
        ->type_name("")
        ->group(group);
}

void HarpFlags::read_files() {
    if (!preset_path_.empty()) preset_ = read_preset(preset_path_);
}

std::optional<Options> HarpFlags::options() const {
    Options options = preset_.options;
    for (const auto & [name, value] : values_) {
        if (!value.empty()) set_option(options, name, value);
    }
    if (preset_path_.empty()) {
        validate(options);
    } else {  // each may be valid alone
        naming_flag(fmt::format("preset '{}' with the flags", preset_path_), [&] { validate(options); });
    }
    if (is_off()) return std::nullopt;
    return options;
}

std::string HarpFlags::switched_off_by() const {
    return off_ ? fmt::format("--harp-off ({})", off_variable)
                : fmt::format("preset '{}' (\"enabled\": false)", preset_path_);
}

std::string HarpFlags::negative_prompt(std::span<const Options> sets) const {
    if (is_off()) return "";
    if (!negative_prompt_.empty()) return negative_prompt_;
    return any_reads_negative_prompt(sets) ? preset_.negative_prompt : "";
}

std::string HarpFlags::negative_prompt() const {
    const std::optional<Options> chosen = options();
    return chosen ? negative_prompt({&*chosen, 1}) : "";
}

void HarpFlags::check_negative_prompt(std::span<const Options> sets) const {
    if (negative_prompt_.empty() || sets.empty() || any_reads_negative_prompt(sets)) return;
    throw Error(ErrorCode::invalid_option,
                fmt::format("option '--harp-negative-prompt': no effect with view {}; allowed: with view guidance",
                            get_option(sets.front(), "view")));
}

static void refuse_flag(bool is_given, std::string_view flag, std::string_view command) {
    if (is_given) throw Error(ErrorCode::invalid_option, fmt::format("option '{}': not in harp {}", flag, command));
}

void HarpFlags::refuse_negative_prompt(std::string_view command) const {
    refuse_flag(!negative_prompt_.empty(), "--harp-negative-prompt", command);
}

void HarpFlags::refuse_negative_prompt_of_preset(std::string_view command) const {
    if (negative_prompt().empty()) return;
    throw Error(ErrorCode::invalid_option,
                fmt::format("preset '{}': negative_prompt: not in harp {}; leave it out", preset_path_, command));
}

uint32_t HarpFlags::n_ctx_twin_for(const std::optional<Options> & options) const {
    const bool is_known = options && options->view == View::last;
    return n_ctx_twin_.value_or(is_known ? options->view_tokens : 0);
}

void HarpFlags::refuse_n_ctx_twin(std::string_view command) const {
    refuse_flag(n_ctx_twin_.has_value(), "--harp-n-ctx-twin", command);
}

void HarpFlags::refuse(std::string_view name, std::string_view why) const {
    const auto found = values_.find(std::string(name));
    if (found == values_.end() || found->second.empty()) return;
    throw Error(ErrorCode::invalid_option,
                fmt::format("option '{}': {}; leave out {} ({})", name, why, flag_of(name), environment_name(name)));
}

void HarpFlags::refuse_in_preset(std::span<const char * const> names, std::string_view why) const {
    std::string found;
    for (const char * name : names) {
        if (preset_.names.contains(name)) found += fmt::format("{}{}", found.empty() ? "" : ", ", name);
    }
    if (found.empty()) return;
    throw Error(ErrorCode::invalid_option,
                fmt::format("preset '{}': {}: {}; leave this out", preset_path_, found, why));
}

std::string HarpFlags::kernels() const {
    if (!kernels_.empty()) return kernels_;
    return is_off() ? "off" : "on";
}

void HarpFlags::set_kernels() const {
    const std::string chosen = kernels();
    const bool are_ours = harp_set_kernels(chosen != "off");
    if (chosen != "on" && chosen != "off" && !harp_set_kernel_instructions(chosen.c_str())) {
        throw Error(ErrorCode::invalid_option,
                    fmt::format("option '--harp-kernels': this processor does not have '{}'; it "
                                "has {}",
                                chosen, harp_kernel_instructions()));
    }
    chosen_kernels = are_ours ? harp_kernel_instructions() : "llama.cpp's";
}

const std::string & kernels_in_use() {
    return chosen_kernels;
}

void HarpFlags::export_to_environment() const {
    const std::optional<Options> chosen = options();
    ::setenv(off_variable, chosen ? "false" : "true", /*overwrite=*/1);
    ::setenv(kernels_variable, kernels().c_str(), 1);
    ::setenv(negative_prompt_variable, negative_prompt().c_str(), 1);
    ::setenv(n_ctx_twin_variable, std::to_string(n_ctx_twin()).c_str(), 1);
    for (const OptionInfo & info : option_table()) {
        if (chosen) ::setenv(environment_name(info.name).c_str(), get_option(*chosen, info.name).c_str(), 1);
    }
}

}  // namespace harp::cli
