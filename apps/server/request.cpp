#include "request.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common.h"
#include "flags/effective_options.h"
#include "harp/error.h"
#include "harp/registration.h"
#include "server/fields.h"

namespace harp::server {

namespace {

/// A JSON value as text that set_option() accepts.
std::string as_text(const std::string & name, const common_json & value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number()) return cli::text_of_number(value.get<double>(), value.dump());
    throw std::invalid_argument("harp." + name + ": " + shown(value) + " is neither a number nor a string");
}

/// Turns errors about options into those of a bad request.
template <class Function>
void naming_harp(Function change) {
    try {
        change();
    } catch (const Error & error) {
        throw std::invalid_argument(std::string("harp: ") + error.what());
    }
}

/// Before any value is looked at, so that `enable` is told to be unknown, and not what its value would have to be.
void check_names(const common_json & fields) {
    std::vector<std::string_view> known = cli::names_in_json();
    std::erase(known, "schedule");
    for (const auto & [name, value] : fields.items()) {
        if (name == "schedule")
            throw std::invalid_argument("harp.schedule is the server's (--harp-schedule), not a request's");
        check_name(name, known);
    }
}

/// A default of the server's may not fit what the request changes: two reframings to a view without masks, a gaussian strength of
/// 5 to dropout. Then the option's own default holds.
void replace_unfit_defaults(Options & options, const common_json & fields) {
    for (const OptionInfo & info : option_table()) {
        const std::string name(info.name);
        if (!fields.contains(name) && !is_allowed(options, name)) set_option(options, name, info.default_value);
    }
}

std::string default_negative_prompt;

/// The object "harp" of a request, with the default negative prompt where that applies. What is no object stays as it is.
common_json fields_of(const common_json & body) {
    common_json fields = common_json::object();
    if (is_given(body, "harp")) fields = body.at("harp");
    const std::optional<Options> defaults = default_options();
    if (!defaults || default_negative_prompt.empty() || !fields.is_object() || fields.contains("negative_prompt"))
        return fields;
    const bool is_guided = fields.contains("view") ? fields.at("view") == "guidance" : defaults->view == View::guidance;
    if (is_guided) fields["negative_prompt"] = default_negative_prompt;
    return fields;
}

common_json json_of(const std::optional<Options> & options) {
    return common_json::parse(cli::options_json(options).dump());
}

/// One user message, after the system messages that a chat begins with.
common_json behind_system_messages(const common_json & body, const common_json & text) {
    common_json messages = common_json::array();
    if (body.contains("messages")) {
        for (const common_json & message : body.at("messages")) {
            if (message.at("role") != "system" && message.at("role") != "developer") break;
            messages.push_back(message);
        }
    }
    messages.push_back({{"role", "user"}, {"content", text}});
    return messages;
}

}  // namespace

common_json request_defaults_json() {
    common_json defaults = json_of(default_options());
    if (!default_negative_prompt.empty()) defaults["negative_prompt"] = default_negative_prompt;
    return defaults;
}

void set_default_negative_prompt(std::string text) {
    default_negative_prompt = std::move(text);
}

void format_negative_prompt(common_json & body, const FormatMessages & format) {
    common_json fields = fields_of(body);
    if (!fields.is_object() || !fields.contains("negative_prompt")) return;
    common_json & negative_prompt = fields.at("negative_prompt");
    if (negative_prompt.is_null() || negative_prompt == "") return;
    if (!negative_prompt.is_string() && !negative_prompt.is_array()) {
        throw std::invalid_argument("harp.negative_prompt: " + shown(negative_prompt) +
                                    " is neither a string nor messages");
    }
    if (negative_prompt.is_array() && negative_prompt.empty()) {
        throw std::invalid_argument(
            "harp.negative_prompt: [] has no messages; for none leave it out, or send \"\" or null");
    }
    try {
        negative_prompt =
            format(negative_prompt.is_string() ? behind_system_messages(body, negative_prompt) : negative_prompt);
    } catch (const std::exception & error) {
        throw std::invalid_argument(std::string("harp.negative_prompt: ") + error.what());
    }
    body["harp"] = fields;
}

std::optional<RequestOptions> request_options(const common_json & body) {
    const std::optional<Options> options = default_options();
    const common_json fields = fields_of(body);
    if (!fields.is_object()) throw std::invalid_argument("harp: " + shown(fields) + " is not an object");
    naming_harp([&] { check_names(fields); });
    bool enabled = options.has_value();
    if (fields.contains("enabled")) {
        if (!fields.at("enabled").is_boolean()) refuse_field("harp.enabled", fields.at("enabled"), "true, false");
        enabled = fields.at("enabled").get<bool>();
        if (enabled && !options) throw std::invalid_argument("harp.enabled: true, but the server runs with --harp-off");
    }
    Options changed = options.value_or(Options{});
    std::string negative_prompt;
    naming_harp([&] {
        for (const auto & [name, value] : fields.items()) {
            if (name == "negative_prompt" && !value.is_null()) {
                if (!value.is_string()) {
                    throw std::invalid_argument("harp.negative_prompt: " + shown(value) +
                                                " is not a string (messages: where the prompt is messages)");
                }
                negative_prompt = value.get<std::string>();
            } else if (name != "enabled" && name != "negative_prompt") {
                set_option(changed, name, as_text(name, value));
            }
        }
        replace_unfit_defaults(changed, fields);
        validate(changed);
    });
    if (!options) return std::nullopt;
    if (!negative_prompt.empty() && changed.view != View::guidance) {
        throw std::invalid_argument("harp.negative_prompt: no effect with view " + get_option(changed, "view") +
                                    "; allowed: with view guidance");
    }
    if (changed.reframings > options->reframings) {
        throw std::invalid_argument("harp.reframings: " + std::to_string(changed.reframings) + "; allowed: 1.." +
                                    std::to_string(options->reframings) + " (the server's --harp-reframings)");
    }
    if (!enabled) changed.threshold = std::numeric_limits<double>::infinity();
    return RequestOptions{changed, negative_prompt, enabled};
}

void add_options(common_json & settings, const std::optional<RequestOptions> & request) {
    if (request) settings["harp"] = json_of(request->enabled ? std::optional(request->options) : std::nullopt);
}

void check_nesting(std::string_view body) {
    constexpr size_t most = 256;
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < body.size(); ++i) {
        const char c = body[i];
        if (in_string) {
            if (c == '\\') ++i;  // skip the escaped character
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > most) {
                throw std::invalid_argument("the body is nested too deep; allowed: " + std::to_string(most) +
                                            " levels");
            }
        } else if ((c == ']' || c == '}') && depth > 0) {
            --depth;
        }
    }
}

std::string begin_request(llama_context * context, llama_seq_id slot, const std::optional<RequestOptions> & request,
                          bool keeps_vanilla) {
    ForwardPass * pass = find_pass(context);
    if (pass == nullptr || !pass->enabled() || !request) return {};
    try {
        pass->set_sequence_options(slot, request->options, /*mask_family=*/0);  // the same answer in any slot
        std::vector<llama_token> negative_prompt;
        if (!request->negative_prompt.empty())
            negative_prompt =
                common_tokenize(context, request->negative_prompt, /*add_special=*/true, /*parse_special=*/true);
        pass->set_negative_prompt(slot, std::move(negative_prompt));
        pass->keep_vanilla_logits(slot, keeps_vanilla);
    } catch (const Error & error) {
        return std::string("harp: ") + error.what();
    }
    return {};
}

void set_prompt_end(llama_context * context, llama_seq_id slot, llama_pos end) {
    if (ForwardPass * pass = find_pass(context)) pass->set_prompt_end(slot, end);
}

bool can_continue_at(llama_context * context, llama_seq_id slot, llama_pos position) {
    const ForwardPass * pass = find_pass(context);
    return pass == nullptr || pass->can_continue_at(slot, position);
}

int32_t max_rows(llama_context * context, llama_seq_id slot, int32_t n_ctx) {
    const ForwardPass * pass = find_pass(context);
    return pass != nullptr ? std::min(n_ctx, static_cast<int32_t>(pass->max_rows(slot))) : n_ctx;
}

std::optional<TokenStep> step_of(llama_context * context, int32_t row, size_t n_candidates) {
    ForwardPass * pass = find_pass(context);
    if (pass == nullptr || !pass->enabled()) return std::nullopt;
    TokenStep step;
    step.record = pass->step(row);
    const float * vanilla = pass->vanilla_logits(row);
    if (n_candidates > 0 && vanilla != nullptr && vanilla != pass->logits(row)) {
        const llama_vocab & vocab = *llama_model_get_vocab(llama_get_model(context));
        step.vanilla = most_probable(vocab, {vanilla, static_cast<size_t>(pass->n_vocab())}, n_candidates);
    }
    return step;
}

void reset_statistics(llama_context * context) {
    if (ForwardPass * pass = find_pass(context)) pass->reset_statistics();
}

std::optional<Statistics> statistics_of(llama_context * context, const std::optional<Statistics> & before) {
    const ForwardPass * pass = find_pass(context);
    if (pass == nullptr || !pass->enabled()) return std::nullopt;
    Statistics sum = pass->statistics();
    if (before) sum += *before;
    return sum;
}

void StepCounts::add(const StepRecord & step) {
    ++steps;
    if (step.hesitated) ++hesitations;
    second_pass_seconds += step.second_pass_seconds;
}

void StepCounts::add(const StepCounts & other) {
    steps += other.steps;
    hesitations += other.hesitations;
    second_pass_seconds += other.second_pass_seconds;
}

common_json StepCounts::to_json() const {
    return {{"steps", steps}, {"hesitations", hesitations}, {"second_pass_seconds", second_pass_seconds}};
}

}  // namespace harp::server
