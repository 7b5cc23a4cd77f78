// HARP in one request to the server: the options in its body, and its steps in the answer.
//
// patches/server-harp.patch calls this from llama.cpp's server, which parses, samples and answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harp/forward_pass.h"
#include "json.h"
#include "server/log_probabilities.h"

namespace harp::server {

/// Refuses bodies so deeply nested that recursion over their values would overflow the stack.
/// @throws std::invalid_argument
void check_nesting(std::string_view body);

/// The defaults of requests, harp::default_options() and the negative prompt: {"enabled": true, "threshold": 1, ...}
[[nodiscard]] common_json request_defaults_json();
/// Sets the negative prompt of requests with view guidance that have none. Call it before the server starts. @param text "": none
void set_default_negative_prompt(std::string text);

struct RequestOptions {
    Options options;
    std::string negative_prompt;  ///< text, formatted like the prompt; empty: the prompt's last token
    bool enabled = true;          ///< if not, the threshold is infinite
};

/// Formats messages like the prompt of a request.
using FormatMessages = std::function<std::string(const common_json & messages)>;
/// Turns a chat's negative prompt, its own or the default one, into text formatted like the prompt. It may be messages, or the
/// text of one user message, which follows the system messages that the chat begins with; an empty list is refused.
/// @throws std::invalid_argument, and what `format` throws
void format_negative_prompt(common_json & body, const FormatMessages & format);

/// The defaults, changed by the object "harp" of a request's body: {"enabled", "negative_prompt", and all options but
/// schedule}, each optional. A negative prompt of null or "" means none. Where a default does not fit what the request changes,
/// the option's own default (harp::Options) holds.
/// @return nullopt with HARP off
/// @throws std::invalid_argument naming field, value and range (the server answers 400)
[[nodiscard]] std::optional<RequestOptions> request_options(const common_json & body);

/// Adds the options that are in effect to what an answer says of its settings, as "harp": {"enabled", "threshold", ...}. No-op with HARP
/// off.
void add_options(common_json & settings, const std::optional<RequestOptions> & request);

/// Sets the options of the slot's sequence from now on. No-op on a context without HARP.
/// @param keeps_vanilla whether candidates of step_of() will be asked for
/// @return why the request is impossible, for its client; empty if it is possible
[[nodiscard]] std::string begin_request(llama_context * context, llama_seq_id slot,
                                        const std::optional<RequestOptions> & request, bool keeps_vanilla);

/// ForwardPass::set_prompt_end() of a slot. Call it when the slot holds no more than what it reuses for the prompt: whatever cuts,
/// moves or restores rows takes the end of the prompt that they belonged to with them. No-op on a context without HARP.
void set_prompt_end(llama_context * context, llama_seq_id slot, llama_pos end);

/// Whether a slot, cut at `position`, would still hold every row that a token there attends to.
[[nodiscard]] bool can_continue_at(llama_context * context, llama_seq_id slot, llama_pos position);

/// How many tokens a slot can hold: `n_ctx`, or ForwardPass::max_rows() if that is less.
[[nodiscard]] int32_t max_rows(llama_context * context, llama_seq_id slot, int32_t n_ctx);

/// The step that chose a token.
struct TokenStep {
    StepRecord record;
    std::vector<Candidate> vanilla;  ///< most probable tokens without HARP; empty if no second pass was mixed
};

/// The step of an output row of the last batch, with up to `n_candidates` candidates; nullopt on a context without
/// HARP.
[[nodiscard]] std::optional<TokenStep> step_of(llama_context * context, int32_t row, size_t n_candidates);

/// Sets the context's counters to 0: what llama.cpp decodes to look what a context can do is no answer. No-op without HARP.
void reset_statistics(llama_context * context);

/// The context's counters, added to `before`, those of contexts that are gone; nullopt on a context without HARP.
[[nodiscard]] std::optional<Statistics> statistics_of(llama_context * context,
                                                      const std::optional<Statistics> & before);

/// Counts the steps that chose a request's tokens.
struct StepCounts {
    uint64_t steps = 0;
    uint64_t hesitations = 0;
    double second_pass_seconds = 0;

    void add(const StepRecord & step);
    void add(const StepCounts & other);
    /// {"steps": 8, "hesitations": 2, "second_pass_seconds": 0.012}
    [[nodiscard]] common_json to_json() const;
};

}  // namespace harp::server
