#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "engine.h"
#include "harp/harp.h"
#include "harp/registration.h"

namespace harp::python {

Pass::Pass(const Model & model, const std::optional<Options> & options, const Size & size)
    : model_(model), options_(options) {
    const auto check = [](const char * name, uint64_t value, uint64_t least, uint64_t most) {
        if (value >= least && value <= most) return;
        throw Error(ErrorCode::invalid_option, std::string(name) + ": " + std::to_string(value) +
                                                   "; allowed: " + std::to_string(least) + ".." + std::to_string(most));
    };
    const uint64_t n_each = options ? 1 + options->reframings : 1;  // a sequence and its twins
    check("n_sequences", size.n_sequences, 1, llama_max_parallel_sequences() / n_each);
    // positions and numbers of cells have 31 bits, including those of the twins
    check("n_ctx", size.n_ctx, 2, std::numeric_limits<int32_t>::max() / (size.n_sequences * n_each));
    check("n_ctx_twin", size.n_ctx_twin, 0, std::numeric_limits<int32_t>::max());
    if (size.n_ctx_twin > 0 && size.n_sequences > 1 && !size.is_unified) {
        throw Error(ErrorCode::invalid_option, "n_ctx_twin: " + std::to_string(size.n_ctx_twin) + " with " +
                                                   std::to_string(size.n_sequences) +
                                                   " sequences; allowed: with unified=True");
    }
    refuse_shared_devices();
    model.loaded().check_generates();
    llama_context_params params = common_context_params_to_llama(model.loaded().params());
    params.n_seq_max = static_cast<uint32_t>(size.n_sequences);
    params.n_ctx = static_cast<uint32_t>(size.n_ctx * size.n_sequences);
    params.n_batch = std::min(params.n_batch, params.n_ctx);
    params.kv_unified = size.is_unified;
    params.n_outputs_max = 0;
    context_.reset(init_from_model(model.loaded().model(), params, options, static_cast<uint32_t>(size.n_ctx_twin)));
    model.loaded().adapt(context_.get());
    pass_ = find_pass(context_.get());
}

void Pass::ContextDeleter::operator()(llama_context * context) const {
    harp_free(context);
}

Pass::Call::Call(Pass & pass) : pass_(pass), lock_(pass.mutex_, std::try_to_lock) {
    if (!lock_)
        throw Error(ErrorCode::unsupported_call, "another thread is using this session; give each thread its own");
    refuse_shared_devices();
    pass.take_out_cancelled();
}

Pass::Call::~Call() {
    const std::lock_guard lock(pass_.counts_mutex_);
    pass_.counts_.pass = pass_.pass_->statistics();
    if (pass_.drafter_) pass_.counts_.speculation = pass_.drafter_->statistics();
}

Pass::Counts Pass::counts() const {
    const std::lock_guard lock(counts_mutex_);
    return counts_;
}

void Pass::cancel(size_t request) {
    {
        const std::lock_guard lock(cancelled_mutex_);
        cancelled_.push_back(request);
    }
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) take_out_cancelled();
}

void Pass::take_out_cancelled() {
    const std::lock_guard lock(cancelled_mutex_);
    for (const size_t request : std::exchange(cancelled_, {})) {
        if (generator_) generator_->cancel(request);
    }
}

void Pass::refuse_while_busy(const char * other) const {
    const bool is_busy = (generator_ && !generator_->is_idle()) || (scorer_ && !scorer_->is_idle());
    if (is_busy) throw Error(ErrorCode::unsupported_call, std::string("this session is still ") + other);
}

std::optional<Options> Pass::read(const OptionTexts & texts) const {
    const std::optional<Options> options = read_options(texts);
    if (!options) return options;
    if (!options_)
        throw Error(ErrorCode::invalid_option, "options: this session was created without HARP; allowed: None");
    pass_->check_options(*options);
    return options;
}

decoding::Generator & Pass::generator() {
    if (generator_) return *generator_;
    refuse_while_busy("scoring");
    scorer_.reset();
    is_direct_ = false;
    if (!drafter_) drafter_ = decoding::Drafter::make(*pass_, model_.loaded().params());
    generator_ = std::make_unique<decoding::Generator>(*pass_, drafter_.get());
    return *generator_;
}

decoding::BatchScorer & Pass::scorer() {
    if (scorer_) return *scorer_;
    refuse_while_busy("generating");
    generator_.reset();
    is_direct_ = false;
    scorer_ = std::make_unique<decoding::BatchScorer>(*pass_);
    return *scorer_;
}

ForwardPass & Pass::taken_over() {
    refuse_while_busy("generating or scoring");
    generator_.reset();
    scorer_.reset();
    is_direct_ = false;
    return *pass_;
}

ForwardPass & Pass::direct() {
    if (is_direct_) return *pass_;
    ForwardPass & pass = taken_over();
    pass.memory_clear(false);  // also forgets where the last prompt ended
    if (options_) pass.set_sequence_options(0, *options_, /*mask_family=*/0);
    pass.set_negative_prompt(0, {});
    is_direct_ = true;
    return pass;
}

llama_pos Pass::n_past() {
    const Call call(*this);
    return is_direct_ ? pass_->memory_seq_pos_max(0) + 1 : 0;
}

decoding::Sampler Pass::new_sampler(const Sampling & sampling) const {
    common_params_sampling params = model_.loaded().params().sampling;
    params.temp = sampling.temperature;
    params.top_k = sampling.top_k;
    params.top_p = sampling.top_p;
    params.min_p = sampling.min_p;
    params.penalty_repeat = sampling.repeat_penalty;
    params.seed = sampling.seed;
    if (!sampling.grammar.empty()) params.grammar = {COMMON_GRAMMAR_TYPE_USER, sampling.grammar};
    return model_.loaded().new_sampler(params);
}

}  // namespace harp::python
