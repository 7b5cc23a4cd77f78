// ForwardPass: creation, results of the last decode, settings.
#include "harp/forward_pass.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "forward/pass_impl.h"

namespace harp {

using forward::Output;
using forward::Sequence;

namespace {

/// A context parameter that has to serve the caller's sequences and their twins: `value` * `streams`.
/// @throws Error{invalid_option} naming the parameter if llama.cpp has no room for that many
uint32_t times(const char * name, uint32_t value, uint32_t streams) {
    const uint32_t most = std::numeric_limits<int32_t>::max() / streams;
    if (value > most) {
        throw Error(ErrorCode::invalid_option, std::string(name) + ": " + std::to_string(value) + " with " +
                                                   std::to_string(streams - 1) + " reframed twins; allowed: 0.." +
                                                   std::to_string(most));
    }
    return value * streams;
}

}  // namespace

Statistics & Statistics::operator+=(const Statistics & other) noexcept {
    steps += other.steps;
    hesitations += other.hesitations;
    clean_rows += other.clean_rows;
    second_pass_rows += other.second_pass_rows;
    fused_steps += other.fused_steps;
    catch_ups += other.catch_ups;
    total_seconds += other.total_seconds;
    llama_seconds += other.llama_seconds;
    second_pass_seconds += other.second_pass_seconds;
    return *this;
}

// ---------------------------------------------------------------------------------------------------------------------
// Creation

ForwardPass::Impl::Impl(llama_model & model, llama_context_params params, const std::optional<Options> & options,
                        uint32_t twin_room) {
    n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&model));
    layout.n_sequences = std::max(1U, params.n_seq_max);
    n_batch = params.n_batch;
    if (options) {
        validate(*options);
        refuse_unsupported(model, params);
        if (params.n_ctx == 0) params.n_ctx = static_cast<uint32_t>(llama_model_n_ctx_train(&model));
        n_ctx = params.n_ctx;
        if (!llama_model_is_recurrent(&model)) n_ctx_twin = twin_room;  // else there are no cells
        add_twins(params, *options);
    }
    context.reset(llama_init_from_model(&model, params));
    if (!context) throw Error(ErrorCode::decode_failed, "llama.cpp could not create a context (its log says why)");
    if (n_ctx_twin == 0) {
        n_ctx = llama_n_ctx(context.get()) / (1 + layout.n_twins);  // llama.cpp rounds up
        n_batch = llama_n_batch(context.get()) / (1 + layout.n_twins);
    } else {  // llama.cpp's limit is the number of cells, and a batch with its twins' rows needs no more than there are
        n_batch = std::min(n_batch, n_ctx);
    }
    if (!options) return;
    memory = forward::LlamaMemory(*context, params.kv_unified);
    for (uint32_t s = 0; s < layout.n_sequences; ++s) {
        const auto id = static_cast<llama_seq_id>(s);
        sequences.emplace_back(memory, id, layout.ids(id), *options);
    }
    keeps_vanilla.assign(layout.n_sequences, 0);
    reframing.install(*context, method::needs_noise(options->perturbation));
    self_check();
}

void ForwardPass::Impl::add_twins(llama_context_params & params, const Options & options) {
    const uint32_t streams = 1 + options.reframings;
    if (layout.n_sequences > llama_max_parallel_sequences() / streams) {
        throw Error(ErrorCode::invalid_option,
                    "n_seq_max: " + std::to_string(params.n_seq_max) + " sequences with " +
                        std::to_string(options.reframings) + " twins each are too many; allowed: n_seq_max * " +
                        "(1 + reframings) <= " + std::to_string(llama_max_parallel_sequences()));
    }
    layout.n_twins = options.reframings;
    params.n_batch = times("n_batch", params.n_batch, streams);
    params.n_outputs_max = times("n_outputs_max", params.n_outputs_max, streams);
    params.n_seq_max = layout.n_sequences * streams;
    if (n_ctx_twin == 0) {
        params.n_ctx = times("n_ctx", params.n_ctx, streams);
    } else {  // streams of llama.cpp's have one size
        if (!params.kv_unified && layout.n_sequences > 1) {
            throw Error(ErrorCode::invalid_option,
                        "n_ctx_twin: " + std::to_string(n_ctx_twin) + " with " + std::to_string(layout.n_sequences) +
                            " sequences, each with a KV stream of its own; allowed: 0, or a unified KV cache "
                            "(kv_unified)");
        }
        check_room(options, n_ctx_twin);
        const uint64_t n_twins = uint64_t{options.reframings} * layout.n_sequences;
        const uint64_t n_cells = params.n_ctx + n_twins * std::min(n_ctx_twin, params.n_ctx);
        params.n_ctx =
            times("n_ctx with n_ctx_twin", static_cast<uint32_t>(std::min<uint64_t>(n_cells, UINT32_MAX)), 1);
        params.kv_unified = true;
    }
    layout.is_interleaved = options.schedule == Schedule::fused && !params.kv_unified;
}

ForwardPass::ForwardPass(llama_model & model, llama_context_params params, const std::optional<Options> & options,
                         uint32_t n_ctx_twin)
    : impl_(std::make_unique<Impl>(model, params, options, n_ctx_twin)) {}
ForwardPass::~ForwardPass() = default;
ForwardPass::ForwardPass(ForwardPass &&) noexcept = default;
ForwardPass & ForwardPass::operator=(ForwardPass &&) noexcept = default;

void ForwardPass::Impl::check_id(llama_seq_id id) const {
    if (id >= 0 && static_cast<uint32_t>(id) < layout.n_sequences) return;
    throw Error(ErrorCode::invalid_input, "sequence id " + std::to_string(id) + "; allowed: 0.." +
                                              std::to_string(layout.n_sequences - 1) + " (n_seq_max)");
}

Sequence & ForwardPass::Impl::sequence(llama_seq_id id) {
    check_id(id);
    return sequences[static_cast<size_t>(id)];
}

const Sequence & ForwardPass::Impl::sequence(llama_seq_id id) const {
    check_id(id);
    return sequences[static_cast<size_t>(id)];
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

float * ForwardPass::logits(int32_t i) {
    if (!impl_->enabled()) return llama_get_logits_ith(impl_->context.get(), i);
    const Output * output = impl_->outputs.find(i);
    return output != nullptr ? impl_->outputs.logits(*output).data() : nullptr;
}

float * ForwardPass::all_logits() {
    return impl_->enabled() ? impl_->outputs.all_logits() : llama_get_logits(impl_->context.get());
}

StepRecord ForwardPass::step(int32_t i) {
    const auto refuse = [i] {
        throw Error(ErrorCode::invalid_batch, "row " + std::to_string(i) + " of the last batch is not an output row");
    };
    if (!impl_->enabled()) {
        const float * logits = llama_get_logits_ith(impl_->context.get(), i);
        if (logits == nullptr) refuse();
        Output vanilla;
        vanilla.threshold = std::numeric_limits<double>::infinity();
        Impl::judge(vanilla, {logits, static_cast<size_t>(impl_->n_vocab)});
        return vanilla.record;
    }
    Output * output = impl_->outputs.find(i);
    if (output == nullptr) refuse();
    if (!output->is_judged) Impl::judge(*output, impl_->outputs.logits(*output));
    return output->record;
}

const float * ForwardPass::vanilla_logits(int32_t i) {
    if (!impl_->enabled()) return llama_get_logits_ith(impl_->context.get(), i);
    const Output * output = impl_->outputs.find(i);
    if (output == nullptr) return nullptr;
    if (!output->is_mixed) return impl_->outputs.logits(*output).data();
    return output->vanilla.empty() ? nullptr : output->vanilla.data();
}

// ---------------------------------------------------------------------------------------------------------------------
// Settings

void ForwardPass::check_options(const Options & options) const {
    validate(options);
    if (!impl_->enabled()) {
        throw Error(ErrorCode::invalid_option, "options: this context was created with HARP off: it has no twins");
    }
    if (options.reframings > impl_->layout.n_twins) {
        throw Error(ErrorCode::invalid_option, "option 'reframings': " + std::to_string(options.reframings) +
                                                   "; this context was created for 1.." +
                                                   std::to_string(impl_->layout.n_twins));
    }
    check_room(options, impl_->n_ctx_twin);
}

void ForwardPass::set_sequence_options(llama_seq_id sequence, const Options & options,
                                       std::optional<uint32_t> mask_family) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    check_options(options);
    if (method::needs_noise(options.perturbation) && !impl.reframing.has_noise()) {
        impl.reframing.install(*impl.context, /*with_noise=*/true);
    }
    Sequence & changed = impl.sequence(sequence);
    changed.set_options(options, mask_family.value_or(changed.mask_family()));
}

void ForwardPass::set_negative_prompt(llama_seq_id sequence, std::vector<llama_token> tokens) {
    Impl & impl = *impl_;
    impl.check_id(sequence);
    if (!impl.enabled()) return;
    const auto is_token = [&](llama_token token) { return token >= 0 && token < impl.n_vocab; };
    if (const auto bad = std::find_if_not(tokens.begin(), tokens.end(), is_token); bad != tokens.end()) {
        throw Error(ErrorCode::invalid_input, "negative prompt: token " + std::to_string(*bad) + "; allowed: 0.." +
                                                  std::to_string(impl.n_vocab - 1));
    }
    if (tokens.size() >= n_ctx_twin()) {
        throw Error(ErrorCode::invalid_input, "negative prompt: " + std::to_string(tokens.size()) +
                                                  " tokens; allowed: 0.." + std::to_string(n_ctx_twin() - 1) +
                                                  " (room of the second pass)");
    }
    impl.sequence(sequence).set_negative_prompt(std::move(tokens));
}

const Options & ForwardPass::sequence_options(llama_seq_id sequence) const {
    if (!impl_->enabled()) throw Error(ErrorCode::invalid_option, "this context was created with HARP off");
    return impl_->sequence(sequence).options();
}

void ForwardPass::set_prompt_end(llama_seq_id sequence, llama_pos end) {
    impl_->check_id(sequence);
    if (impl_->enabled()) impl_->sequence(sequence).set_prompt_end(end);
}

uint32_t ForwardPass::max_rows(llama_seq_id sequence) const {
    impl_->check_id(sequence);
    return impl_->enabled() ? impl_->max_rows(impl_->sequence(sequence).view(), n_ctx_seq()) : n_ctx_seq();
}

uint32_t ForwardPass::max_rows(const Options & options, size_t n_prompt,
                               std::span<const llama_token> negative_prompt) const {
    std::vector<forward::Row> prompt(n_prompt);
    for (size_t i = 0; i < n_prompt; ++i) prompt[i].position = static_cast<llama_pos>(i);
    return impl_->max_rows({options, prompt, n_prompt, /*is_prompt_complete=*/true, negative_prompt}, n_ctx_seq());
}

uint32_t ForwardPass::Impl::max_rows(const forward::ViewOf & view, uint32_t n_ctx_seq) const {
    if (!enabled() || view.options.is_vanilla()) return n_ctx_seq;
    const auto lead = static_cast<uint32_t>(std::max(0, view.offset()));
    const uint32_t most = n_ctx_seq - std::min(lead, n_ctx_seq);
    if (n_ctx_twin == 0 || view.options.view == View::last || !view.is_prompt_complete) return most;
    const size_t n_before_answer = std::min<size_t>(view.n_cells(view.n_prompt), n_ctx_twin);
    return static_cast<uint32_t>(std::min<size_t>(most, view.n_prompt + n_ctx_twin - n_before_answer));
}

void ForwardPass::prepare_twins(llama_seq_id sequence) {
    impl_->check_id(sequence);
    if (!impl_->enabled()) return;
    if (!impl_->sequence(sequence).options().is_vanilla()) impl_->complete_twins(sequence);
}

void ForwardPass::keep_vanilla_logits(llama_seq_id sequence, bool keep) {
    impl_->check_id(sequence);
    if (impl_->enabled()) impl_->keeps_vanilla[static_cast<size_t>(sequence)] = keep ? 1 : 0;
}

void ForwardPass::set_observer(StepObserver observer) {
    impl_->observer = std::move(observer);
}
void ForwardPass::set_row_perturbation(RowPerturbation perturbation) {
    impl_->row_perturbation = std::move(perturbation);
}

bool ForwardPass::enabled() const noexcept {
    return impl_->enabled();
}
uint32_t ForwardPass::n_ctx() const noexcept {
    return impl_->n_ctx;
}
uint32_t ForwardPass::n_ctx_seq() const noexcept {
    return std::min(n_ctx(), llama_n_ctx_seq(impl_->context.get()));
}
uint32_t ForwardPass::n_ctx_twin() const noexcept {
    return impl_->n_ctx_twin == 0 ? n_ctx_seq() : std::min(n_ctx_seq(), impl_->n_ctx_twin);
}
uint32_t ForwardPass::n_batch() const noexcept {
    return impl_->n_batch;
}
uint32_t ForwardPass::n_seq_max() const noexcept {
    return impl_->layout.n_sequences;
}
int32_t ForwardPass::n_vocab() const noexcept {
    return impl_->n_vocab;
}
llama_context * ForwardPass::context() noexcept {
    return impl_->context.get();
}

const Statistics & ForwardPass::statistics() const noexcept {
    return impl_->statistics;
}
void ForwardPass::reset_statistics() {
    impl_->statistics = {};
}

ScheduleReport ForwardPass::schedule_report() const {
    const auto & costs = impl_->costs;
    ScheduleReport report;
    report.chosen = costs.chosen();
    report.hesitation_share = costs.hesitation_share();
    const auto one = costs.is_measured(1) ? costs.call_seconds(1) : std::nullopt;
    if (!one || *one <= 0) return report;
    if (costs.is_measured(2)) report.cost_of_two = *costs.call_seconds(2) / *one;
    const size_t n_twins = std::max(1U, impl_->layout.n_twins);
    report.fused_cost = costs.fused_seconds(1, n_twins).value_or(0) / *one;
    report.lazy_cost = costs.lazy_seconds(1, n_twins).value_or(0) / *one;
    return report;
}

}  // namespace harp
