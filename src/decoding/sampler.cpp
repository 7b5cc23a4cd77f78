#include "decoding/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "sampling.h"

namespace harp::decoding {

namespace {

llama_sampler_ptr make_grammar(const llama_model & model, const std::string & text) {
    if (text.empty()) return nullptr;
    const llama_vocab * vocab = llama_model_get_vocab(&model);
    llama_sampler_ptr grammar(text.starts_with("%llguidance")
                                  ? llama_sampler_init_llg(vocab, "lark", text.c_str())
                                  : llama_sampler_init_grammar(vocab, text.c_str(), "root"));
    if (!grammar) throw std::runtime_error("failed to parse grammar");
    return grammar;
}

llama_sampler_ptr make_chain(const llama_model & model, common_params_sampling params) {
    params.grammar = {};  // common_sampler's grammar is private, so ours is made separately
    const common_sampler_ptr sampler(common_sampler_init(&model, params));
    return llama_sampler_ptr(llama_sampler_clone(common_sampler_get(sampler.get())));
}

/// Whether a chain with these settings always takes the most probable token.
bool is_greedy(const llama_model & model, const common_params_sampling & params) {
    int32_t n_suppressed = 0;
    llama_vocab_get_suppress_tokens(llama_model_get_vocab(&model), &n_suppressed);
    const bool is_cold = params.temp <= 0 && params.dynatemp_range <= 0 && params.mirostat == 0 &&
                         std::ranges::count(params.samplers, COMMON_SAMPLER_TYPE_TEMPERATURE) > 0 &&
                         std::ranges::count(params.samplers, COMMON_SAMPLER_TYPE_INFILL) == 0;
    const bool leaves_best = params.xtc_probability <= 0 && params.typ_p >= 1 && params.adaptive_target < 0;
    const bool keeps_logits = params.logit_bias.empty() && n_suppressed == 0 && params.penalty_repeat == 1 &&
                              params.penalty_freq == 0 && params.penalty_present == 0 && params.dry_multiplier == 0;
    return is_cold && leaves_best && keeps_logits && params.reasoning_budget_start.empty();
}

}  // namespace

Sampler::Sampler(const llama_model & model, common_params_sampling params)
    : Sampler(make_chain(model, params), make_grammar(model, common_grammar_value(params.grammar)),
              llama_vocab_eos(llama_model_get_vocab(&model)), decoding::is_greedy(model, params)) {}

Sampler::Sampler(llama_sampler_ptr chain, llama_sampler_ptr grammar, llama_token end, bool is_greedy)
    : chain_(std::move(chain)), grammar_(std::move(grammar)), end_(end), is_greedy_(is_greedy) {}

Sampler Sampler::clone() const {
    return {llama_sampler_ptr(llama_sampler_clone(chain_.get())),
            llama_sampler_ptr(grammar_ ? llama_sampler_clone(grammar_.get()) : nullptr), end_, is_greedy_};
}

void Sampler::begin(std::span<const llama_token> prompt) {
    llama_sampler_reset(chain_.get());
    if (grammar_) llama_sampler_reset(grammar_.get());
    for (const llama_token token : prompt) llama_sampler_accept(chain_.get(), token);
}

bool Sampler::is_allowed(llama_token token) const {
    llama_token_data only = {token, 1.0F, 0.0F};
    llama_token_data_array alone = {&only, 1, -1, false};
    llama_sampler_apply(grammar_.get(), &alone);
    return !std::isinf(only.logit);
}

llama_token Sampler::choose(std::span<const float> logits, bool under_grammar) {
    if (is_greedy_ && !under_grammar) {  // faster: a chain goes over the whole vocabulary several times
        return static_cast<llama_token>(std::ranges::max_element(logits) - logits.begin());
    }
    candidates_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {static_cast<llama_token>(i), logits[i], 0.0F};
    llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, false};
    if (under_grammar) llama_sampler_apply(grammar_.get(), &array);
    llama_sampler_apply(chain_.get(), &array);
    const llama_token_data & chosen = array.data[array.selected];
    // the grammar allows only the end, and --ignore-eos forbids it: the text ends all the same
    const bool is_nothing_left = under_grammar && std::isinf(chosen.logit) && end_ != LLAMA_TOKEN_NULL;
    return is_nothing_left && is_allowed(end_) ? end_ : chosen.id;
}

/// Like common_sampler_sample: applying a grammar to the whole vocabulary is slow, so the chosen token is tested first.
llama_token Sampler::sample(std::span<const float> logits) {
    const llama_token token = choose(logits, /*under_grammar=*/false);
    return !grammar_ || is_allowed(token) ? token : choose(logits, /*under_grammar=*/true);
}

void Sampler::accept(llama_token token) {
    if (grammar_) llama_sampler_accept(grammar_.get(), token);
    llama_sampler_accept(chain_.get(), token);
}

}  // namespace harp::decoding
