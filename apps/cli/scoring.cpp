#include "scoring.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/interrupt.h"

namespace harp::cli {

void ScoringFlags::add_to(CLI::App & app) {
    app.add_option("--window", window,
                   "tokens of a window [2..context size; default -c, or 2048, or what the model was trained with, if "
                   "that is less]")
        ->check(CLI::Range(2L, 1L << 30));
    app.add_option("--max-tokens", max_tokens, "read only the first N tokens [2..; default all]")
        ->check(CLI::Range(2L, 1L << 40));
}

ScoringText read_scoring_text(LoadedModel & loaded, const std::string & text, const ScoringFlags & flags,
                              const std::string & negative_prompt) {
    constexpr size_t least_window = 2;
    ScoringText result{loaded.tokenize(text, /*parse_special=*/false), loaded.pass().n_ctx_seq(),
                       negative_prompt_of(loaded, negative_prompt, "raw", least_window)};
    result.window -= result.negative_prompt.size();  // the twin reads the negative prompt and the window behind it
    const ForwardPass & pass = loaded.pass();
    if (pass.enabled())  // of a window all tokens but the first are answer
        result.window =
            std::min<size_t>(result.window, pass.max_rows(pass.sequence_options(0), 1, result.negative_prompt));
    if (flags.max_tokens > 0 && static_cast<size_t>(flags.max_tokens) < result.tokens.size())
        result.tokens.resize(static_cast<size_t>(flags.max_tokens));
    if (flags.window > 0) result.window = static_cast<size_t>(flags.window);
    return result;
}

bool ScoringProgress::show(size_t done, size_t total) {
    const double left = done > 0 ? seconds() / static_cast<double>(done) * static_cast<double>(total - done) : 0;
    line_.show(fmt::format("{}{} of {} {} ({:.0f} %), about {:.0f} s left", name_, done, total, unit_,
                           100.0 * static_cast<double>(done) / static_cast<double>(total), left));
    return !interrupt_requested;
}

std::string standard_error_text(double standard_error, int width, int precision) {
    if (std::isnan(standard_error)) return fmt::format("± {:<{}}", "unknown", width);
    return fmt::format("± {:<{}.{}f}", standard_error, width, precision);
}

nlohmann::json mean_json(const decoding::Mean & mean) {
    return {{"mean", mean.value}, {"standard_error", mean.standard_error}};
}

}  // namespace harp::cli
