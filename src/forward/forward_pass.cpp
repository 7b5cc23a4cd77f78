// ForwardPass: creation, and the decode of one batch: clean rows, judgement, second pass where it hesitates, mixing.
#include "harp/forward_pass.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "forward/pass_impl.h"
#include "method/entropy.h"
#include "method/mixing.h"
#include "method/perturbation.h"

namespace harp {

using forward::DrawId;
using forward::HistoryRow;
using forward::TokenRow;

namespace {

class Stopwatch {
  public:
    [[nodiscard]] double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Turns llama_decode's return value into an error.
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

forward::SplitPolicy split_policy_of(const llama_model & model, const llama_context_params & params) {
    if (llama_model_is_recurrent(&model)) return forward::SplitPolicy::equal_sequential;
    if (!params.kv_unified) return forward::SplitPolicy::equal_sequential;
    return llama_model_is_hybrid(&model) ? forward::SplitPolicy::equal : forward::SplitPolicy::in_order;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Creation

ForwardPass::Impl::Impl(llama_model & model, llama_context_params params, const std::optional<Options> & options) {
    n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&model));
    n_swa = llama_model_n_swa(&model);
    layout.n_sequences = std::max(1U, params.n_seq_max);
    if (options) {
        validate(*options);
        refuse_unsupported(model, params);
        const uint32_t streams = 1 + options->reframings;
        if (layout.n_sequences * streams > llama_max_parallel_sequences()) {
            throw Error(ErrorCode::invalid_option,
                        "n_seq_max: " + std::to_string(params.n_seq_max) + " sequences with " +
                            std::to_string(options->reframings) + " twins each are too many; allowed: n_seq_max * " +
                            "(1 + reframings) <= " + std::to_string(llama_max_parallel_sequences()));
        }
        layout.n_twins = options->reframings;
        layout.interleaved = options->schedule == Schedule::fused && !params.kv_unified;
        split_policy = split_policy_of(model, params);

        const uint32_t n_ctx = params.n_ctx > 0 ? params.n_ctx : static_cast<uint32_t>(llama_model_n_ctx_train(&model));
        params.n_ctx = n_ctx * streams;
        params.n_batch *= streams;
        params.n_outputs_max *= streams;
        params.n_seq_max = layout.n_sequences * streams;
        hook.install(params);
        sequences.resize(layout.n_sequences);
        for (uint32_t s = 0; s < layout.n_sequences; ++s) sequences[s] = {{}, *options, s};
        is_fused.assign(layout.n_sequences, 0);
    }
    context.reset(llama_init_from_model(&model, params));
    if (!context) throw Error(ErrorCode::decode_failed, "llama.cpp could not create a context (its log says why)");
    memory = llama_get_memory(context.get());
    n_ubatch = llama_n_ubatch(context.get());
    if (options) self_check();
}

ForwardPass::ForwardPass(llama_model & model, llama_context_params params, const std::optional<Options> & options)
    : impl_(std::make_unique<Impl>(model, params, options)) {}
ForwardPass::~ForwardPass() = default;
ForwardPass::ForwardPass(ForwardPass &&) noexcept = default;
ForwardPass & ForwardPass::operator=(ForwardPass &&) noexcept = default;

// ---------------------------------------------------------------------------------------------------------------------
// Decode

void ForwardPass::decode(const llama_batch & batch, const CountUsefulOutputs & count_useful) {
    const Stopwatch total;
    impl_->decode(batch, count_useful);
    impl_->statistics.total_seconds += total.seconds();
    assert(check_invariant().empty());
}

void ForwardPass::Impl::decode(const llama_batch & batch, const CountUsefulOutputs & count_useful) {
    outputs.clear();
    logits_are_kept = false;
    if (!enabled()) {
        decode_vanilla(batch);
        return;
    }
    const std::vector<TokenRow> rows =
        forward::read_rows(batch, {llama_n_batch(context.get()) / (1 + layout.n_twins), layout.n_sequences, n_vocab},
                           [this](llama_seq_id s) { return state(s).history.next_position(); });
    plan_fused(rows);
    const double seconds_before = statistics.second_pass_seconds;
    try {
        decode_clean(rows);
        append_to_histories(rows);
        collect_outputs(rows);
        judge_outputs();
        catch_up(count_useful);
        share_second_pass(statistics.second_pass_seconds - seconds_before);
        if (observer) observe_outputs();
    } catch (...) {  // also what an observer or a row perturbation throws
        roll_back(rows);
        outputs.clear();
        throw;
    }
    statistics.clean_rows += rows.size();
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

/// Decides which sequences decode their twin rows in this very batch: decoding (all rows wanted), twins up to date.
void ForwardPass::Impl::plan_fused(const std::vector<TokenRow> & rows) {
    std::fill(is_fused.begin(), is_fused.end(), 0);
    std::map<llama_seq_id, size_t> candidates;  // -> rows in this batch
    for (const TokenRow & row : rows) {
        for (const llama_seq_id s : row.sequences) {
            const SequenceState & sequence = state(s);
            const size_t n_history = sequence.history.size();
            const bool possible = row.is_output && row.sequences.size() == 1 && !sequence.options.is_vanilla() &&
                                  sequence.options.schedule != Schedule::lazy && sequence.options.redraw != 1 &&
                                  n_history > 0 && sequence.history.n_twin() == n_history;
            const auto [it, is_new] = candidates.try_emplace(s, 0);
            if (!possible) {
                it->second = rows.size() + 1;  // never
            } else if (is_new || it->second <= rows.size()) {
                ++it->second;
            }
        }
    }
    size_t n_clean = 0;
    size_t n_twin = 0;
    for (const auto & [s, n] : candidates) {
        if (n > rows.size()) continue;
        is_fused[static_cast<size_t>(s)] = 1;
        if (state(s).options.schedule == Schedule::automatic) {
            n_clean += n;
            n_twin += n * state(s).options.reframings;
        }
    }
    if (n_clean == 0) return;
    const bool fuse =
        n_clean + n_twin <= forward::CostModel::max_rows && costs.choose(n_clean, n_twin) == Schedule::fused;
    if (fuse) return;
    for (const auto & [s, n] : candidates) {
        if (state(s).options.schedule == Schedule::automatic) is_fused[static_cast<size_t>(s)] = 0;
    }
}

/// Lays out and runs the batch: the caller's rows, and behind (or between) them the twin rows of fused sequences.
void ForwardPass::Impl::decode_clean(const std::vector<TokenRow> & rows) {
    inner_batch.clear();
    inner_rows.clear();
    inner_of_row.assign(rows.size(), -1);
    twins_of_row.assign(rows.size(), {});
    for (const TokenRow & row : rows) {
        for (const llama_seq_id s : row.sequences) {
            if (state(s).options.scope == Scope::generated) share_prompt(s);
        }
    }

    const auto add_clean = [&](size_t i) {
        std::vector<llama_seq_id> ids;
        for (const llama_seq_id s : rows[i].sequences) ids.push_back(layout.clean(s));
        inner_of_row[i] = static_cast<int32_t>(inner_batch.size());
        add_inner(rows[i].token, rows[i].position, ids, rows[i].is_output,
                  {rows[i].sequences.front(), 0, false, {}, 0, false});
    };
    const auto add_twin = [&](size_t i, uint32_t reframing) {
        const llama_seq_id s = rows[i].sequences.front();
        const bool reframed = state(s).history.would_reframe(rows[i].position, state(s).options.scope);
        twins_of_row[i].push_back(static_cast<int32_t>(inner_batch.size()));
        const llama_seq_id id = layout.twin(s, reframing);
        add_inner(rows[i].token, rows[i].position, {&id, 1}, true,
                  {s, reframing, true, state(s).history.twin_draw(), rows[i].position, reframed});
    };
    const auto fused = [&](size_t i) { return is_fused[static_cast<size_t>(rows[i].sequences.front())] != 0; };
    const auto n_twins_of = [&](size_t i) { return state(rows[i].sequences.front()).options.reframings; };

    size_t n_twin_rows = 0;
    size_t n_fused = 0;
    if (layout.interleaved && std::any_of(is_fused.begin(), is_fused.end(), [](char f) { return f != 0; })) {
        // ascending inner ids: clean rows of a sequence, then those of each of its twins
        std::vector<size_t> by_sequence(rows.size());
        for (size_t i = 0; i < rows.size(); ++i) by_sequence[i] = i;
        std::stable_sort(by_sequence.begin(), by_sequence.end(),
                         [&](size_t a, size_t b) { return rows[a].sequences.front() < rows[b].sequences.front(); });
        for (auto begin = by_sequence.begin(); begin != by_sequence.end();) {
            const auto end = std::find_if(begin, by_sequence.end(), [&](size_t i) {
                return rows[i].sequences.front() != rows[*begin].sequences.front();
            });
            for (auto it = begin; it != end; ++it) add_clean(*it);
            for (uint32_t r = 0; fused(*begin) && r < n_twins_of(*begin); ++r) {
                for (auto it = begin; it != end; ++it) add_twin(*it, r);
            }
            begin = end;
        }
    } else {
        for (size_t i = 0; i < rows.size(); ++i) add_clean(i);
        for (uint32_t r = 0; r < layout.n_twins; ++r) {
            for (size_t i = 0; i < rows.size(); ++i) {
                if (fused(i) && r < n_twins_of(i)) add_twin(i, r);
            }
        }
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        n_twin_rows += twins_of_row[i].size();
        if (!twins_of_row[i].empty()) ++n_fused;
    }

    const double seconds = run_inner();
    if (n_twin_rows > 0) {
        const auto clean_alone = costs.call_seconds(static_cast<double>(rows.size()));
        const double share = static_cast<double>(n_twin_rows) / static_cast<double>(inner_batch.size());
        statistics.second_pass_seconds += clean_alone ? std::max(0.0, seconds - *clean_alone) : seconds * share;
        statistics.second_pass_rows += n_twin_rows;
        statistics.fused_steps += n_fused;
    }
}

void ForwardPass::Impl::append_to_histories(const std::vector<TokenRow> & rows) {
    for (const TokenRow & row : rows) {
        for (const llama_seq_id s : row.sequences) {
            SequenceState & sequence = state(s);
            sequence.history.append(row.token, row.position, sequence.options.scope, row.is_output);
            if (is_fused[static_cast<size_t>(s)] != 0) {
                sequence.history.set_twin(sequence.history.size(), sequence.history.twin_draw());
            }
        }
    }
}

void ForwardPass::Impl::collect_outputs(const std::vector<TokenRow> & rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
        if (!rows[i].is_output) continue;
        Output output;
        output.row = static_cast<int32_t>(i);
        output.sequence = rows[i].sequences.front();
        output.position = rows[i].position;
        output.logits = llama_get_logits_ith(context.get(), inner_of_row[i]);
        if (output.logits == nullptr) throw Error(ErrorCode::decode_failed, "llama.cpp gave no logits for a row");
        output.twin_rows = twins_of_row[i];
        outputs.push_back(std::move(output));
    }
}

void ForwardPass::Impl::judge(Output & output) const {
    const double threshold = enabled() ? state(output.sequence).options.threshold : HUGE_VAL;
    const double entropy = method::entropy_bits(logits_span(output.logits));
    if (std::isnan(entropy)) {
        throw Error(ErrorCode::decode_failed,
                    "the logits at position " + std::to_string(output.position) + " are not numbers");
    }
    output.record = {entropy, entropy > threshold};
    output.is_judged = true;
}

/// The gate: entropy of each output row against its sequence's threshold. Mixes what was decoded fused.
void ForwardPass::Impl::judge_outputs() {
    for (Output & output : outputs) {
        SequenceState & sequence = state(output.sequence);
        if (std::isinf(sequence.options.threshold) && !observer) continue;  // never hesitates: judged when asked
        judge(output);
        ++statistics.steps;
        statistics.hesitations += output.record.hesitated ? 1 : 0;
        costs.add_step(output.record.hesitated);
        sequence.history.mark_hesitation(sequence.history.index_of(output.position), output.record.hesitated);
        if (output.record.hesitated && !output.twin_rows.empty()) mix_fused(output);
    }
}

/// Mixes with the twin rows of the same batch, in place in llama.cpp's buffer, if they have the draw that is due.
void ForwardPass::Impl::mix_fused(Output & output) {
    const SequenceState & sequence = state(output.sequence);
    const size_t row = sequence.history.index_of(output.position);
    if (due_draw(sequence, row) != sequence.history.twin_draw()) {
        output.twin_rows.clear();  // a new draw begins: the twin is computed anew
        return;
    }
    const auto n = static_cast<unsigned>(output.twin_rows.size());
    std::span<const float> reframed = logits_span(llama_get_logits_ith(context.get(), output.twin_rows[0]));
    if (n > 1) {
        scratch_reframed.assign(static_cast<size_t>(n_vocab), 0.0F);
        for (const int32_t twin : output.twin_rows) {
            method::accumulate_mean(logits_span(llama_get_logits_ith(context.get(), twin)), n, scratch_reframed);
        }
        reframed = scratch_reframed;
    }
    mix(output, reframed);
}

void ForwardPass::Impl::mix(Output & output, std::span<const float> reframed) {
    const std::span<float> logits = logits_span(output.logits);
    // -infinity is a probability of zero; NaN and +infinity are not logits
    const bool are_numbers = std::none_of(reframed.begin(), reframed.end(),
                                          [](float x) { return !(x <= std::numeric_limits<float>::max()); });
    if (!are_numbers) {
        throw Error(ErrorCode::decode_failed,
                    "the reframed logits at position " + std::to_string(output.position) + " are not numbers");
    }
    const SequenceState & sequence = state(output.sequence);
    if (observer || sequence.keeps_vanilla) output.vanilla.assign(logits.begin(), logits.end());
    if (observer) output.reframed.assign(reframed.begin(), reframed.end());
    method::mix_logits(logits, reframed, sequence.options.beta, logits);
    output.is_mixed = true;
}

void ForwardPass::Impl::share_second_pass(double seconds) {
    const auto n_mixed = std::count_if(outputs.begin(), outputs.end(), [](const Output & o) { return o.is_mixed; });
    for (Output & output : outputs) {
        if (output.is_mixed) output.record.second_pass_seconds = seconds / static_cast<double>(n_mixed);
    }
}

void ForwardPass::Impl::observe_outputs() const {
    for (const Output & output : outputs) {
        const std::span<const float> mixed = logits_span(output.logits);
        const std::span<const float> vanilla = output.vanilla.empty() ? mixed : std::span<const float>(output.vanilla);
        observer({output.sequence, output.position, output.record, vanilla, output.reframed, mixed});
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The second pass on its own (schedule lazy, and every first one)

/// Copies the clean rows out of llama.cpp's buffer, which the next llama_decode overwrites.
void ForwardPass::Impl::keep_logits() {
    if (logits_are_kept) return;
    const auto n = static_cast<size_t>(n_vocab);
    kept_logits.resize(outputs.size() * n);
    for (size_t i = 0; i < outputs.size(); ++i) {
        float * kept = kept_logits.data() + i * n;
        std::copy_n(outputs[i].logits, n, kept);
        outputs[i].logits = kept;
    }
    logits_are_kept = true;
}

bool ForwardPass::Impl::waits_for_second_pass(const Output & output) const {
    const SequenceState & sequence = state(output.sequence);
    if (!output.record.hesitated || !output.twin_rows.empty() || sequence.options.beta == 1.0F) return false;
    // in a clean prompt nothing is perturbed: the reframed row is the vanilla one
    return sequence.history.index_of(output.position) >= sequence.history.clean_prefix();
}

void ForwardPass::Impl::catch_up(const CountUsefulOutputs & count_useful) {
    const auto waits = [this](const Output & output) { return waits_for_second_pass(output); };
    for (auto begin = outputs.begin(); std::any_of(begin, outputs.end(), waits);) {
        const size_t n_useful = count_useful ? std::min(count_useful(), outputs.size()) : outputs.size();
        const auto end = outputs.begin() + static_cast<std::ptrdiff_t>(n_useful);
        if (end <= begin) return;
        std::vector<std::vector<Output *>> waiting(layout.n_sequences);  // [sequence]: hesitating rows, by position
        for (; begin != end; ++begin) {
            if (!waits(*begin)) continue;
            keep_logits();
            waiting[static_cast<size_t>(begin->sequence)].push_back(&*begin);
        }
        for (std::vector<TwinJob> jobs = next_jobs(waiting); !jobs.empty(); jobs = next_jobs(waiting)) run_jobs(jobs);
    }
}

DrawId ForwardPass::Impl::due_draw(const SequenceState & sequence, size_t row) {
    DrawId due = sequence.history.draw_for_hesitation(row, sequence.options.redraw);
    // only NEFTune's noise depends on the length: for the others a draw is its index
    if (sequence.options.perturbation != Perturbation::uniform) due.length = 1;
    return due;
}

/// Takes from each sequence the hesitations that share the next draw, and the rows their twins still miss.
///
///   history    t0 t1 t2 t3 t4 t5 t6          hesitates after t3 and t5, the twin holds t0..t1
///   job              t2 t3 t4 t5             decoded for the twin, logits wanted at t3 and t5
///   (if a new draw is due at t5: a job t2..t3 first, then the twin is emptied and a job t0..t5 follows)
std::vector<ForwardPass::Impl::TwinJob> ForwardPass::Impl::next_jobs(std::vector<std::vector<Output *>> & waiting) {
    std::vector<TwinJob> jobs;
    for (auto & queue : waiting) {
        if (queue.empty()) continue;
        TwinJob job;
        job.sequence = queue.front()->sequence;
        SequenceState & sequence = state(job.sequence);
        auto & history = sequence.history;
        const auto due_at = [&](const Output * output) {
            return due_draw(sequence, history.index_of(output->position));
        };
        job.draw = due_at(queue.front());
        size_t n_taken = 0;
        while (n_taken < queue.size() && due_at(queue[n_taken]).index == job.draw.index) {
            Output * output = queue[n_taken++];
            job.wants.emplace_back(history.index_of(output->position), output);
        }
        queue.erase(queue.begin(), queue.begin() + static_cast<std::ptrdiff_t>(n_taken));

        const bool same_draw = history.twin_draw() == job.draw;
        // rows that the twins hold, but whose logits are wanted now, are decoded again: the last one at least
        const size_t keep = same_draw ? std::min(history.n_twin(), job.wants.front().first)
                                      : std::min(history.n_twin(), history.clean_prefix());
        truncate_twins(job.sequence, keep);
        job.begin = history.n_twin();
        job.end = job.wants.back().first + 1;
        jobs.push_back(std::move(job));
    }
    return jobs;
}

void ForwardPass::Impl::run_jobs(const std::vector<TwinJob> & jobs) {
    struct Wanted {
        int32_t inner = 0;
        Output * output = nullptr;
    };
    std::map<Output *, std::vector<float>> means;  // reframed logits, mean over the reframings so far
    std::vector<Wanted> wanted;                    // of the batch under construction
    double seconds = 0;
    const size_t n_batch = llama_n_batch(context.get());

    const auto flush = [&] {
        if (inner_batch.size() == 0) return;
        const size_t n_rows = inner_batch.size();
        seconds += run_inner();
        statistics.second_pass_rows += n_rows;
        for (const Wanted & want : wanted) {
            auto & mean = means.try_emplace(want.output, static_cast<size_t>(n_vocab), 0.0F).first->second;
            const float * logits = llama_get_logits_ith(context.get(), want.inner);
            if (logits == nullptr) throw Error(ErrorCode::decode_failed, "llama.cpp gave no logits for a twin row");
            method::accumulate_mean({logits, static_cast<size_t>(n_vocab)},
                                    state(want.output->sequence).options.reframings, mean);
        }
        wanted.clear();
        inner_batch.clear();
        inner_rows.clear();
    };

    inner_batch.clear();
    inner_rows.clear();
    for (uint32_t r = 0; r < layout.n_twins; ++r) {
        for (const TwinJob & job : jobs) {
            const SequenceState & sequence = state(job.sequence);
            if (r >= sequence.options.reframings) continue;
            auto want = job.wants.begin();
            for (size_t i = job.begin; i < job.end; ++i) {
                const HistoryRow & row = sequence.history.rows()[i];
                const bool is_wanted = want != job.wants.end() && want->first == i;
                if (is_wanted) wanted.push_back({static_cast<int32_t>(inner_batch.size()), (want++)->second});
                const llama_seq_id id = layout.twin(job.sequence, r);
                add_inner(row.token, row.position, {&id, 1}, is_wanted,
                          {job.sequence, r, true, job.draw, row.mask_position, row.reframed});
                if (inner_batch.size() == n_batch) flush();
            }
        }
    }
    flush();
    for (const TwinJob & job : jobs) state(job.sequence).history.set_twin(job.end, job.draw);
    statistics.second_pass_seconds += seconds;
    statistics.catch_ups += jobs.size();
    for (auto & [output, mean] : means) mix(*output, mean);
}

// ---------------------------------------------------------------------------------------------------------------------
// Inner batches

void ForwardPass::Impl::add_inner(llama_token token, llama_pos position, std::span<const llama_seq_id> ids,
                                  bool is_output, const InnerRow & row) {
    inner_batch.add(token, position, ids, is_output);
    inner_rows.push_back(row);
}

double ForwardPass::Impl::run_inner() {
    const bool has_twins =
        std::any_of(inner_rows.begin(), inner_rows.end(), [](const InnerRow & r) { return r.is_twin; });
    std::vector<forward::ReframingHook::ExpectedRow> expected;
    if (has_twins) {
        expected.reserve(inner_batch.size());
        for (const size_t i : forward::computation_order(inner_batch, split_policy, n_ubatch)) {
            expected.push_back({inner_batch.token(i), perturbation_of(inner_rows[i])});
        }
    }
    hook.expect(std::move(expected));

    const Stopwatch watch;
    const int32_t result = llama_decode(context.get(), inner_batch.view());
    if (result == 0) llama_synchronize(context.get());
    const double seconds = watch.seconds();

    statistics.llama_seconds += seconds;
    const auto failure = hook.finish();
    check_decode_result(result);
    if (failure) throw Error(ErrorCode::unsupported_call, *failure);
    costs.add_call(inner_batch.size(), seconds);
    return seconds;
}

forward::ReframingHook::Perturb ForwardPass::Impl::perturbation_of(const InnerRow & row) {
    if (!row.is_twin || !row.reframed) return {};
    const SequenceState & sequence = state(row.sequence);
    if (row_perturbation) {
        return [this, row](std::span<float> embedding) {
            row_perturbation({row.sequence, row.mask_position, row.draw.index, row.reframing}, embedding);
        };
    }
    const method::Draw draw{sequence.options.seed, row.draw.index, sequence.mask_sequence, row.reframing,
                            row.draw.length};
    const auto position = static_cast<uint32_t>(row.mask_position);
    return [draw, position, kind = sequence.options.perturbation, strength = sequence.options.strength](
               std::span<float> embedding) { method::perturb(draw, position, kind, strength, embedding); };
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

ForwardPass::Impl::Output * ForwardPass::Impl::find_output(int32_t i) {
    if (i < 0) {
        const auto from_end = static_cast<size_t>(-static_cast<int64_t>(i));
        return from_end <= outputs.size() ? &outputs[outputs.size() - from_end] : nullptr;
    }
    const auto it = std::lower_bound(outputs.begin(), outputs.end(), i,
                                     [](const Output & output, int32_t row) { return output.row < row; });
    return it != outputs.end() && it->row == i ? &*it : nullptr;
}

float * ForwardPass::logits(int32_t i) {
    if (!impl_->enabled()) return llama_get_logits_ith(impl_->context.get(), i);
    const Impl::Output * output = impl_->find_output(i);
    return output != nullptr ? output->logits : nullptr;
}

float * ForwardPass::all_logits() {
    if (!impl_->enabled()) return llama_get_logits(impl_->context.get());
    impl_->keep_logits();
    return impl_->kept_logits.data();
}

StepRecord ForwardPass::step(int32_t i) {
    Impl::Output vanilla;
    Impl::Output * output = impl_->find_output(i);
    if (!impl_->enabled()) {
        vanilla.logits = llama_get_logits_ith(impl_->context.get(), i);
        output = vanilla.logits != nullptr ? &vanilla : nullptr;
    }
    if (output == nullptr) {
        throw Error(ErrorCode::invalid_batch, "row " + std::to_string(i) + " of the last batch is not an output row");
    }
    if (!output->is_judged) impl_->judge(*output);
    return output->record;
}

const float * ForwardPass::vanilla_logits(int32_t i) {
    if (!impl_->enabled()) return llama_get_logits_ith(impl_->context.get(), i);
    const Impl::Output * output = impl_->find_output(i);
    if (output == nullptr) return nullptr;
    if (!output->is_mixed) return output->logits;
    return output->vanilla.empty() ? nullptr : output->vanilla.data();
}

void ForwardPass::keep_vanilla_logits(llama_seq_id sequence, bool keep) {
    if (impl_->enabled()) impl_->state(sequence).keeps_vanilla = keep;
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
    return llama_n_ctx(impl_->context.get()) / (1 + impl_->layout.n_twins);
}
uint32_t ForwardPass::n_ctx_seq() const noexcept {
    return std::min(n_ctx(), llama_n_ctx_seq(impl_->context.get()));
}
uint32_t ForwardPass::n_batch() const noexcept {
    return llama_n_batch(impl_->context.get()) / (1 + impl_->layout.n_twins);
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
