// Shared by score and calibrate: the text and its windows, progress, means as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "decoding/score.h"
#include "flags/terminal.h"
#include "model/loaded_model.h"
#include "stopwatch.h"

namespace harp::cli {

/// --window and --max-tokens.
struct ScoringFlags {
    long window = 0;      ///< tokens; 0: not given
    long max_tokens = 0;  ///< likewise

    void add_to(CLI::App & app);
};

struct ScoringText {
    std::vector<llama_token> tokens;
    size_t window = 0;  ///< tokens
    std::vector<llama_token> negative_prompt;
};
/// @param negative_prompt text, not formatted, as the text is not; "": none
[[nodiscard]] ScoringText read_scoring_text(LoadedModel & loaded, const std::string & text, const ScoringFlags & flags,
                                            const std::string & negative_prompt = "");

/// One line of progress, with the time left.
class ScoringProgress {
  public:
    /// @param name what is in progress; printed before the count
    explicit ScoringProgress(std::string name = "", std::string unit = "tokens")
        : name_(std::move(name)), unit_(std::move(unit)) {}
    /// @return false once an interrupt is requested
    bool show(size_t done, size_t total);
    void clear() { line_.clear(); }
    [[nodiscard]] double seconds() const { return watch_.seconds(); }  ///< since it was made

  private:
    std::string name_, unit_;
    Stopwatch watch_;
    ProgressLine line_;
};

/// A line of text below means with their standard errors.
constexpr const char * standard_error_note = "± is one standard error, tokens taken as independent.\n";
/// "± 0.0123", `width` columns behind the sign; "unknown" of one value alone.
[[nodiscard]] std::string standard_error_text(double standard_error, int width, int precision);
[[nodiscard]] nlohmann::json mean_json(const decoding::Mean & mean);

}  // namespace harp::cli
