#include "request.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "cli/effective_options.h"
#include "harp/error.h"
#include "harp/registration.h"

namespace harp::server {

namespace {

/// A JSON value as the text that set_option() takes.
std::string as_text(const std::string & name, const common_json & value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number()) return value.dump();
    throw std::invalid_argument("harp." + name + ": " + value.dump() + " is neither a number nor a string");
}

void set_field(Options & options, const std::string & name, const common_json & value) {
    if (name == "schedule")
        throw std::invalid_argument("harp.schedule is the server's (--harp-schedule), not a request's");
    set_option(options, name, as_text(name, value));
}

}  // namespace

common_json request_defaults_json() {
    return common_json::parse(cli::options_json(default_options()).dump());
}

std::optional<Options> request_options(const common_json & body) {
    const std::optional<Options> options = default_options();
    if (!body.contains("harp") || body.at("harp").is_null()) return options;
    const common_json & fields = body.at("harp");
    if (!fields.is_object()) throw std::invalid_argument("harp: " + fields.dump() + " is not an object");
    bool enabled = options.has_value();
    if (fields.contains("enabled")) {
        if (!fields.at("enabled").is_boolean())
            throw std::invalid_argument("harp.enabled: " + fields.at("enabled").dump() + "; allowed: true, false");
        enabled = fields.at("enabled").get<bool>();
        if (enabled && !options) throw std::invalid_argument("harp.enabled: true, but the server runs with --harp-off");
    }
    Options changed = options.value_or(Options{});
    try {
        for (const auto & [name, value] : fields.items()) {
            if (name != "enabled") set_field(changed, name, value);
        }
        validate(changed);
    } catch (const Error & error) {
        throw std::invalid_argument(std::string("harp: ") + error.what());
    }
    if (!options) return options;
    if (changed.reframings > options->reframings) {
        throw std::invalid_argument("harp.reframings: " + std::to_string(changed.reframings) + "; allowed: 1.." +
                                    std::to_string(options->reframings) + " (the server's --harp-reframings)");
    }
    if (!enabled) changed.threshold = std::numeric_limits<double>::infinity();
    return changed;
}

void begin_request(llama_context * context, llama_seq_id slot, const std::optional<Options> & options, size_t n_prompt,
                   bool keeps_vanilla) {
    ForwardPass * pass = find_pass(context);
    if (pass == nullptr || !pass->enabled() || !options) return;
    pass->set_sequence_options(slot, *options, /*mask_sequence=*/0);  // the same answer in whatever slot
    pass->set_prompt_end(slot, static_cast<llama_pos>(n_prompt));
    pass->keep_vanilla_logits(slot, keeps_vanilla);
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

Statistics statistics_of(llama_context * context) {
    ForwardPass * pass = find_pass(context);
    return pass != nullptr ? pass->statistics() : Statistics{};
}

void StepCounts::add(const StepRecord & step) {
    ++steps;
    if (step.hesitated) ++hesitations;
    second_pass_seconds += step.second_pass_seconds;
}

common_json StepCounts::to_json() const {
    return {{"steps", steps}, {"hesitations", hesitations}, {"second_pass_seconds", second_pass_seconds}};
}

}  // namespace harp::server
