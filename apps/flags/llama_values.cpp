#include "flags/llama_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string_view>
#include <vector>

#include "arg.h"
#include "flags/files.h"
#include "harp/error.h"
#include "sampling.h"

namespace harp::cli {

namespace {

[[noreturn]] void refuse(const std::string & what, const std::string & why) {
    throw Error(ErrorCode::invalid_option, fmt::format("{}: {}", what, why));
}

/// llama.cpp takes "nan" and "inf" for numbers.
void check_finite(const std::string & what, float value) {
    if (!std::isfinite(value)) refuse(what, fmt::format("{} is not a finite number", value));
}

/// llama.cpp does not check these: some end the program, -5 becomes a huge unsigned number, and 99999 another port.
void check_ranges(const common_params & params) {
    const auto check = [](const char * flag, int value, int least, int most, const char * range) {
        if (value < least || value > most)
            refuse(fmt::format("option '{}'", flag), fmt::format("{} is out of range [{}]", value, range));
    };
    constexpr int any = std::numeric_limits<int>::max();
    static const std::string most_threads = fmt::format("..{}", GGML_MAX_N_THREADS);
    check("-c", params.n_ctx, 0, any, "0..");
    check("-b", params.n_batch, 1, any, "1..");
    check("-ub", params.n_ubatch, 0, any, "0..");
    check("-t", params.cpuparams.n_threads, -any, GGML_MAX_N_THREADS, most_threads.c_str());
    check("-tb", params.cpuparams_batch.n_threads, -any, GGML_MAX_N_THREADS, most_threads.c_str());
    check("-np", params.n_parallel, -1, 256, "1..256, or -1 for automatic");  // 256: LLAMA_MAX_SEQ
    check("--mirostat", params.sampling.mirostat, 0, 2, "0..2");
    check("--port", params.port, 0, 65535, "0..65535");
    check("--timeout", params.timeout_read, 1, any, "1.., seconds");  // 0: bodies that are sent late are empty
    if (params.api_prefix.ends_with('/') || (!params.api_prefix.empty() && params.api_prefix[0] != '/'))
        refuse("option '--api-prefix'", "'" + params.api_prefix + "'; allowed: /PATH");
    for (const auto & adapter : params.lora_adapters) check_finite("option '--lora-scaled'", adapter.scale);
    for (const auto & vector : params.control_vectors)
        check_finite("option '--control-vector-scaled'", vector.strength);
    for (const float part : params.tensor_split) check_finite("option '--tensor-split'", part);
    for (const auto & [token, bias] : params.sampling.logit_bias) {  // -inf forbids a token
        if (std::isnan(bias)) check_finite("option '--logit-bias'", bias);
    }
}

/// With Jinja llama.cpp takes the name of a built-in template for the template itself, and the messages are lost.
void check_template(const common_params & params) {
    const std::string & text = params.chat_template;
    const bool is_name = text.find_first_of("{ \t\r\n") == std::string::npos;
    if (!params.use_jinja || text.empty() || text == "chatml" || !is_name) return;
    refuse("option '--chat-template'",
           fmt::format("'{}' is no Jinja template; of the built-in ones only chatml works without --no-jinja", text));
}

/// Flags that read a file are often given a folder, of which llama.cpp's message has no name.
void check_not_directory(const std::string & what, std::string_view hint, const std::string & value) {
    std::error_code unused;
    if (hint != "FNAME" && hint != "FILE" && hint != "JINJA_TEMPLATE_FILE") return;
    if (std::filesystem::is_directory(value, unused)) refuse(what, fmt::format("'{}' is a directory", value));
}

void check_integer(const std::string & what, const std::string & value) {
    int parsed = 0;
    const char * end = value.data() + value.size();
    const auto result = std::from_chars(value.data(), end, parsed);
    using Limits = std::numeric_limits<int>;
    if (result.ec == std::errc::result_out_of_range && result.ptr == end)
        refuse(what, fmt::format("{} is out of range [{}..{}]", value, Limits::min(), Limits::max()));
    if (result.ec != std::errc{} || result.ptr != end) refuse(what, fmt::format("'{}' is not a whole number", value));
}

/// Of a number that need not be whole llama.cpp takes what it can read: 0 of "0,7". Words such as "auto" are left to it.
void check_number(const std::string & what, const std::string & value) {
    char * end = nullptr;
    const float number = std::strtof(value.c_str(), &end);
    if (end == value.c_str()) return;
    check_finite(what, number);
    if (*end != '\0') refuse(what, fmt::format("'{}' is not a number", value));
}

/// llama.cpp takes the first digits of "1e3", and the lower half of a seed of 64 bits.
void check_seed(const std::string & what, const std::string & value) {
    constexpr uint32_t most = std::numeric_limits<uint32_t>::max();
    char * end = nullptr;
    const double seed = std::strtod(value.c_str(), &end);
    if (!(seed >= -1 && seed <= most))
        refuse(what, fmt::format("{} is out of range [0..{}, or -1 for a random one]", value, most));
    if (*end != '\0' || value.find_first_not_of("-0123456789") != std::string::npos)
        refuse(what, fmt::format("'{}' is not a whole number", value));
}

/// llama.cpp leaves out samplers that it does not know.
void check_sampler(const std::string & what, bool is_known, const std::string & sampler) {
    if (!is_known) refuse(what, fmt::format("no sampler '{}' (--help-llama lists them)", sampler));
}

}  // namespace

void check_value(const std::string & what, const common_arg & option, const std::string & value) {
    const std::vector<std::string> names = option.get_args();
    const auto is = [&](const char * name) { return std::find(names.begin(), names.end(), name) != names.end(); };
    const std::string_view hint = option.value_hint != nullptr ? option.value_hint : "";
    if (option.handler_int != nullptr) {
        check_integer(what, value);
    } else if (is("--seed")) {
        check_seed(what, value);
    } else if (is("--samplers")) {
        for (const std::string & name : string_split<std::string>(value, ';'))
            check_sampler(what, !common_sampler_types_from_names({name}).empty(), name);
    } else if (is("--sampler-seq")) {
        for (const char letter : value)
            check_sampler(what, !common_sampler_types_from_chars({letter}).empty(), std::string(1, letter));
    } else if (hint == "N" || hint == "P") {
        check_number(what, value);
    } else {
        check_not_directory(what, hint, value);
        if (is("--log-file")) check_writable(what + ":", value);  // llama.cpp goes on without one
    }
}

void check_parsed(const common_params & params) {
    check_ranges(params);
    check_template(params);
}

}  // namespace harp::cli
