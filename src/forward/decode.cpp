// ForwardPass: the decode of one batch: clean rows, the gate, mixing. (decode_layout.cpp makes the batch; twins that
// catch up are in second_pass.cpp.)
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "forward/pass_impl.h"
#include "method/entropy.h"
#include "method/mixing.h"
#include "stopwatch.h"

namespace harp {

using forward::CallerRow;
using forward::InnerBatch;
using forward::Output;
using forward::Sequence;
using forward::TwinRow;

namespace {

/// Turns an error code of llama_decode into an exception.
void check_decode_result(int32_t result) {
    switch (result) {
        case 0: return;
        case 1:
            throw Error(ErrorCode::context_full,
                        "no room in the KV cache for this batch; use a larger context (n_ctx) or fewer sequences");
        case 2: throw Error(ErrorCode::aborted, "decoding was aborted by the abort callback");
        case -1: throw Error(ErrorCode::invalid_batch, "llama_decode rejected the batch (its log says why)");
        default: throw Error(ErrorCode::decode_failed, "llama_decode failed with " + std::to_string(result));
    }
}

/// While in scope: the kind of attention (causal or not) of a batch of clean rows or of twins that catch up. Embeddings
/// have the one that the caller had set when it decoded them. Twins read tokens causally, also those that wait when the
/// caller has set another attention for a picture: they are not in the batches in which they came.
class Attention {
  public:
    Attention(llama_context & context, const forward::InnerBatch & batch)
        : context_(context),
          was_causal_(llama_get_causal_attn(&context)),
          is_causal_(batch.chunk() != nullptr                   ? batch.chunk()->is_causal
                     : batch.twin_rows().size() == batch.size() ? true
                                                                : was_causal_) {
        if (is_causal_ != was_causal_) llama_set_causal_attn(&context_, is_causal_);
    }
    ~Attention() {
        if (is_causal_ != was_causal_) llama_set_causal_attn(&context_, was_causal_);
    }
    Attention(const Attention &) = delete;
    Attention & operator=(const Attention &) = delete;

  private:
    llama_context & context_;
    bool was_causal_, is_causal_;
};

/// While in scope: a decode, in which no other may begin.
class Busy {
  public:
    explicit Busy(bool & is_decoding) : is_decoding_(is_decoding) {
        if (is_decoding) {
            throw Error(ErrorCode::unsupported_call,
                        "decode() was called in a decode() of the same pass (by an observer?)");
        }
        is_decoding = true;
    }
    ~Busy() { is_decoding_ = false; }
    Busy(const Busy &) = delete;
    Busy & operator=(const Busy &) = delete;

  private:
    bool & is_decoding_;
};

}  // namespace

void ForwardPass::decode(const llama_batch & batch, const CountUsefulOutputs & count_useful) {
    const Busy busy(impl_->is_decoding);
    const Stopwatch total;
    impl_->decode(batch, count_useful);
    impl_->statistics.total_seconds += total.seconds();
}

void ForwardPass::Impl::decode(const llama_batch & batch, const CountUsefulOutputs & count_useful) {
    outputs.clear(static_cast<size_t>(n_vocab));
    if (!enabled()) return decode_vanilla(batch);
    Decode call = read(batch);
    if (const std::string text = disagreement(call); !text.empty()) {
        throw Error(ErrorCode::unsupported_call,
                    text + "; it was changed by other calls than HARP's (llama_memory_...)");
    }
    const double seconds_before = statistics.second_pass_seconds;
    try {
        keep_states(call);
        plan_fused(call);
        append_rows(call);
        check_twin_room(call);
        drop_unfit(call);
        lay_out(call);
        run_clean(call);
        collect_outputs(call);
        judge_outputs();
        catch_up(count_useful);
        share_second_pass(statistics.second_pass_seconds - seconds_before);
        count_steps();
        if (observer) observe_outputs();
        if (const std::string text = disagreement(call); !text.empty()) throw Error(ErrorCode::decode_failed, text);
    } catch (...) {  // also exceptions of an observer or a row perturbation
        take_back(call);
        outputs.clear(static_cast<size_t>(n_vocab));
        throw;
    }
    statistics.clean_rows += call.rows.size();
}

void ForwardPass::Impl::decode_vanilla(const llama_batch & batch) {
    if (batch.n_tokens <= 0 || static_cast<uint32_t>(batch.n_tokens) > llama_n_batch(context.get())) {
        throw Error(ErrorCode::invalid_batch, "the batch has " + std::to_string(batch.n_tokens) +
                                                  " rows; allowed: 1.." + std::to_string(llama_n_batch(context.get())) +
                                                  " (n_batch)");
    }
    const Stopwatch watch;
    check_decode_result(llama_decode(context.get(), batch));
    statistics.llama_seconds += watch.seconds();
    statistics.clean_rows += static_cast<uint64_t>(batch.n_tokens);
}

void ForwardPass::Impl::run_clean(Decode & call) {
    const double seconds = run(call.inner);
    const size_t n_twin_rows = call.inner.twin_rows().size();
    if (n_twin_rows == 0) return;
    for (size_t s = 0; s < call.is_fused.size(); ++s) {
        if (call.is_fused[s] != 0) sequences[s].twins_hold(sequences[s].size(), sequences[s].twin_draw());
    }
    statistics.second_pass_seconds += seconds * costs.added_share(call.inner.size(), n_twin_rows);
    statistics.second_pass_rows += n_twin_rows;
    statistics.fused_steps += static_cast<uint64_t>(std::count_if(call.twins_of_row.begin(), call.twins_of_row.end(),
                                                                  [](const auto & twins) { return !twins.empty(); }));
}

/// Removes a failed batch from sequences and memory.
void ForwardPass::Impl::take_back(const Decode & call) {
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (!call.marks[s]) continue;
        const auto & [n_rows, position, prompt_end, state] = *call.marks[s];
        if (state.empty()) {
            sequences[s].take_back(n_rows, position);
            // run() forgets all recurrent sequences; one that was empty before still has its whole prompt to come
            if (n_rows == 0 && prompt_end) sequences[s].set_prompt_end(*prompt_end);
            continue;
        }
        try {
            forward::Reader in(state);
            sequences[s].load_with_memory(in, /*limits=*/nullptr, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        } catch (const Error &) {  // it is empty now
        }
    }
}

std::string ForwardPass::Impl::disagreement(const Decode & call) const {
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (!call.marks[s]) continue;
        if (std::string text = sequences[s].disagreement(); !text.empty()) return text;
    }
    return {};
}

// ---------------------------------------------------------------------------------------------------------------------
// The gate and the mix

void ForwardPass::Impl::collect_outputs(const Decode & call) {
    for (size_t i = 0; i < call.rows.size(); ++i) {
        const CallerRow & row = call.rows[i];
        if (!row.is_output) continue;
        Output output;
        const auto & places = call.places_of_row[i];
        output.row = static_cast<int32_t>(i);
        output.sequence = places.front().sequence;
        output.index = places.front().index;
        output.others.assign(places.begin() + 1, places.end());
        output.position = row.position;
        const Options & options = sequence(output.sequence).options();
        output.gate = options.gate;
        output.threshold = options.threshold;
        output.mix = {options.beta, options.plausibility};
        output.twin_rows = call.twins_of_row[i];
        outputs.add(std::move(output), inner_logits(call.inner_of_row[i]).data());
    }
}

void ForwardPass::Impl::judge(Output & output, std::span<const float> logits) {
    const method::SoftmaxSummary summary = method::summarise_softmax(logits);
    if (std::isnan(summary.entropy_bits)) {
        throw Error(ErrorCode::decode_failed,
                    "the logits at position " + std::to_string(output.position) + " are not numbers");
    }
    output.record.entropy = summary.entropy_bits;
    output.record.ratio = summary.ratio;
    output.record.hesitated = output.record.gate(output.gate) > output.threshold;
    output.is_judged = true;
}

/// A row that never hesitates is judged only if it is asked for.
static bool is_judged_at_once(const forward::Output & output, const StepObserver & observer) {
    return !std::isinf(output.threshold) || observer;
}

/// Compares the gate of each output row with its sequence's threshold, and mixes fused rows.
void ForwardPass::Impl::judge_outputs() {
    for (Output & output : outputs) {
        if (!is_judged_at_once(output, observer)) continue;
        judge(output, outputs.logits(output));
        sequence(output.sequence).mark_hesitation(output.index, output.record.hesitated);
        for (const auto & [s, index] : output.others) sequence(s).mark_hesitation(index, output.record.hesitated);
        if (output.record.hesitated && !output.twin_rows.empty()) mix_fused(output);
    }
}

/// Counts the steps of a batch that has succeeded; one that is taken back may come again.
void ForwardPass::Impl::count_steps() {
    for (const Output & output : outputs) {
        if (!is_judged_at_once(output, observer)) continue;
        ++statistics.steps;
        statistics.hesitations += output.record.hesitated ? 1 : 0;
        costs.add_step(output.record.hesitated);
    }
}

/// Mixes with the twins' rows of the same batch, in place in llama.cpp's buffer, if they have the right draw.
void ForwardPass::Impl::mix_fused(Output & output) {
    const Sequence & of_row = sequence(output.sequence);
    if (of_row.due_draw(output.index) != of_row.twin_draw()) {
        output.twin_rows.clear();  // a new draw begins here: catch_up() computes the twins anew
        return;
    }
    const auto n = static_cast<unsigned>(output.twin_rows.size());
    std::span<const float> reframed = inner_logits(output.twin_rows[0]);
    if (n > 1) {
        scratch_reframed.assign(static_cast<size_t>(n_vocab), 0.0F);
        for (const int32_t twin : output.twin_rows) method::accumulate_mean(inner_logits(twin), n, scratch_reframed);
        reframed = scratch_reframed;
    }
    mix(output, reframed);
}

void ForwardPass::Impl::mix(Output & output, std::span<const float> reframed) {
    const std::span<float> logits = outputs.logits(output);
    // -infinity is fine (probability zero); NaN and +infinity are not logits
    const bool are_numbers = std::none_of(reframed.begin(), reframed.end(),
                                          [](float x) { return !(x <= std::numeric_limits<float>::max()); });
    if (!are_numbers) {
        throw Error(ErrorCode::decode_failed,
                    "the reframed logits at position " + std::to_string(output.position) + " are not numbers");
    }
    if (observer || keeps_vanilla[static_cast<size_t>(output.sequence)] != 0) {
        output.vanilla.assign(logits.begin(), logits.end());
    }
    if (observer) output.reframed.assign(reframed.begin(), reframed.end());
    method::mix_logits(logits, reframed, output.mix, logits);
    output.is_mixed = true;
}

void ForwardPass::Impl::share_second_pass(double seconds) {
    const auto n_mixed = std::count_if(outputs.begin(), outputs.end(), [](const Output & o) { return o.is_mixed; });
    for (Output & output : outputs) {
        if (output.is_mixed) output.record.second_pass_seconds = seconds / static_cast<double>(n_mixed);
    }
}

void ForwardPass::Impl::observe_outputs() {
    const StepObserver observe = observer;  // it may replace itself
    for (const Output & output : outputs) {
        const std::span<const float> mixed = outputs.logits(output);
        const std::span<const float> vanilla = output.vanilla.empty() ? mixed : std::span<const float>(output.vanilla);
        observe({output.sequence, output.position, output.record, vanilla, output.reframed, mixed});
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// llama_decode

double ForwardPass::Impl::run(InnerBatch & batch) {
    for (const TwinRow & row : batch.twin_rows()) reframing.expect(row.inner, row.position, perturbation_of(row));
    const Stopwatch watch;
    const int32_t result = [&] {
        const Attention attention(*context, batch);
        const int32_t code = llama_decode(context.get(), batch.view());
        if (code == 0) llama_synchronize(context.get());
        return code;
    }();
    const double seconds = watch.seconds();
    statistics.llama_seconds += seconds;
    const auto failure = reframing.finish();
    // llama.cpp moves recurrent states of all sequences, those of other batches too, while it computes: some may be lost
    const bool was_computing = result != 0 && result != 1 && result != -1;
    if (was_computing && memory.kind().is_recurrent) {
        llama_memory_clear(llama_get_memory(context.get()), /*data=*/true);
        for (Sequence & each : sequences) {
            if (each.size() > 0) each.forget();
        }
    }
    check_decode_result(result);
    if (failure) throw Error(ErrorCode::unsupported_call, *failure);
    if (batch.chunk() == nullptr) costs.add_call(batch.size(), seconds);
    return seconds;
}

forward::Reframing::Perturb ForwardPass::Impl::perturbation_of(const TwinRow & row) {
    if (!row.is_reframed) return {};
    if (row_perturbation) {
        return [this, where = row.where](const method::RowChange & change) { row_perturbation(where, change.factors); };
    }
    const Sequence & of_row = sequence(row.where.sequence);
    const Options & options = of_row.options();
    const method::Masks masks{options.seed, row.draw.index, of_row.mask_family(), row.where.reframing, row.draw.length};
    if (options.view == View::masked) {
        return [masks, ordinal = row.where.ordinal, probability = options.strength](const method::RowChange & change) {
            method::mask(masks, ordinal, probability, change.factors);
        };
    }
    return [masks, ordinal = row.where.ordinal, kind = options.perturbation, strength = options.strength](
               const method::RowChange & change) { method::perturb(masks, ordinal, kind, strength, change); };
}

std::span<float> ForwardPass::Impl::inner_logits(int32_t row) const {
    float * logits = llama_get_logits_ith(context.get(), row);
    if (logits == nullptr) throw Error(ErrorCode::decode_failed, "llama.cpp gave no logits for a row");
    return {logits, static_cast<size_t>(n_vocab)};
}

}  // namespace harp
