// ForwardPass: operations on the KV cache, mirrored on twins and histories, and the options of sequences.
//
//   caller:   seq_rm(s, p0, p1)
//   inner:    clean(s)    ████████████░░░░░░      the range is removed from the clean stream,
//             twin(s, r)  ████████░░░             from each twin (which may hold fewer rows),
//             history(s)  t0 t1 ... [p0, p1)      and from the history with its queue of pending rows
#include <algorithm>
#include <cassert>
#include <limits>

#include "forward/pass_impl.h"

namespace harp {

using forward::DrawId;

SequenceState & ForwardPass::Impl::state(llama_seq_id sequence) {
    assert(sequence >= 0 && static_cast<size_t>(sequence) < sequences.size());
    return sequences[static_cast<size_t>(sequence)];
}

const SequenceState & ForwardPass::Impl::state(llama_seq_id sequence) const {
    assert(sequence >= 0 && static_cast<size_t>(sequence) < sequences.size());
    return sequences[static_cast<size_t>(sequence)];
}

// ---------------------------------------------------------------------------------------------------------------------
// Twins

void ForwardPass::Impl::empty_twins(llama_seq_id sequence) {
    for (uint32_t r = 0; r < layout.n_twins; ++r) llama_memory_seq_rm(memory, layout.twin(sequence, r), -1, -1);
    state(sequence).history.forget_twin();
}

void ForwardPass::Impl::truncate_twins(llama_seq_id sequence, size_t from) {
    auto & history = state(sequence).history;
    if (from >= history.n_twin()) return;
    const llama_pos position = from == 0 ? -1 : history.rows()[from].position;
    bool done = true;
    for (uint32_t r = 0; r < layout.n_twins; ++r) {
        const llama_seq_id twin = layout.twin(sequence, r);
        done = llama_memory_seq_rm(memory, twin, position, -1) && done;
        // a sliding-window cache may have dropped what the remaining rows' successors attend to
        const bool window_lost =
            n_swa > 0 && from > 0 && llama_memory_seq_pos_min(memory, twin) > std::max(0, position - n_swa);
        done = done && !window_lost;
    }
    if (done) {
        history.set_twin(from, history.twin_draw());
    } else {
        empty_twins(sequence);
    }
}

/// Where the cells begin that a sequence's twins do not share with its clean stream.
llama_pos ForwardPass::Impl::first_own_position(llama_seq_id sequence) const {
    const auto & history = state(sequence).history;
    const size_t n_shared = std::min(history.n_shared(), history.n_twin());
    if (n_shared == 0) return 0;
    return n_shared < history.size() ? history.rows()[n_shared].position : history.next_position();
}

/// Decodes the twins' pending rows. Before rows in the middle are removed: pending rows see them, as the clean ones did.
///
///   clean   t0 t1 t2 t3 t4 t5      seq_rm of t1 t2
///   twin    t0 t1 t2 t3 -> t4 t5   decoded while t1 t2 are still there
void ForwardPass::Impl::complete_twins(llama_seq_id sequence) {
    auto & history = state(sequence).history;
    if (history.n_twin() == history.size()) return;
    const DrawId draw = history.n_twin() > 0 ? history.twin_draw() : due_draw(state(sequence), history.size() - 1);
    keep_logits();
    try {
        run_jobs({{sequence, draw, history.n_twin(), history.size(), {}}});
    } catch (const Error &) {  // no room, for example: the twins begin anew at the next hesitation
        empty_twins(sequence);
    } catch (...) {
        empty_twins(sequence);
        throw;
    }
}

/// Scope::generated: at the end of the prompt the clean stream holds just what the twins would.
///
///   clean   p0 p1 p2 p3 | next: the first reframed token
///   twin    ^^ the same cells (unified cache: shared; separate streams: copied once)
void ForwardPass::Impl::share_prompt(llama_seq_id sequence) {
    auto & history = state(sequence).history;
    const bool at_prompt_end = !history.empty() && history.clean_prefix() == history.size() &&
                               history.n_twin() < history.size() &&
                               history.would_reframe(history.next_position(), Scope::generated);
    if (!at_prompt_end) return;
    for (uint32_t r = 0; r < state(sequence).options.reframings; ++r) {
        llama_memory_seq_rm(memory, layout.twin(sequence, r), -1, -1);
        llama_memory_seq_cp(memory, layout.clean(sequence), layout.twin(sequence, r), -1, -1);
    }
    history.set_twin(history.size(), {});
    if (split_policy != forward::SplitPolicy::equal_sequential) history.set_shared(history.size());
}

/// Takes a failed batch out of streams, twins and histories. Where memory cannot be removed in part (recurrent models)
/// the sequence is emptied, history included, so that both still agree.
void ForwardPass::Impl::roll_back(const std::vector<forward::TokenRow> & rows) {
    std::vector<llama_pos> first(layout.n_sequences, std::numeric_limits<llama_pos>::max());
    for (const forward::TokenRow & row : rows) {
        for (const llama_seq_id s : row.sequences) {
            auto & position = first[static_cast<size_t>(s)];
            position = std::min(position, row.position);
        }
    }
    const auto remove_from = [this](llama_seq_id inner, llama_pos position) {
        if (llama_memory_seq_pos_max(memory, inner) < position) return true;
        if (llama_memory_seq_rm(memory, inner, position, -1)) return true;
        llama_memory_seq_rm(memory, inner, -1, -1);
        return false;
    };
    for (llama_seq_id s = 0; static_cast<uint32_t>(s) < layout.n_sequences; ++s) {
        const llama_pos position = first[static_cast<size_t>(s)];
        if (position == std::numeric_limits<llama_pos>::max()) continue;
        auto & history = state(s).history;
        history.take_back(position);
        const bool clean_kept = remove_from(layout.clean(s), position);
        const llama_pos twin_end = history.n_twin() == 0 ? 0 : history.rows()[history.n_twin() - 1].position + 1;
        bool twins_kept = true;
        for (uint32_t r = 0; r < layout.n_twins; ++r) {
            twins_kept = remove_from(layout.twin(s, r), twin_end) && twins_kept;
        }
        if (!clean_kept || !twins_kept) empty_twins(s);
        if (!clean_kept) history.clear();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory operations

void ForwardPass::memory_clear(bool data) {
    llama_memory_clear(impl_->memory, data);
    for (SequenceState & sequence : impl_->sequences) sequence.history.clear();
}

bool ForwardPass::memory_seq_rm(llama_seq_id sequence, llama_pos p0, llama_pos p1) {
    Impl & impl = *impl_;
    if (!impl.enabled()) return llama_memory_seq_rm(impl.memory, sequence, p0, p1);
    if (sequence < 0) {
        bool all = true;
        for (uint32_t s = 0; s < impl.layout.n_sequences; ++s) {
            all = memory_seq_rm(static_cast<llama_seq_id>(s), p0, p1) && all;
        }
        return all;
    }
    auto & history = impl.state(sequence).history;
    const bool is_middle = p1 >= 0 && p1 < history.next_position();
    if (is_middle && history.n_twin() > 0) impl.complete_twins(sequence);
    if (!llama_memory_seq_rm(impl.memory, impl.layout.clean(sequence), p0, p1)) return false;
    bool twins_followed = true;
    for (uint32_t r = 0; r < impl.layout.n_twins; ++r) {
        twins_followed = llama_memory_seq_rm(impl.memory, impl.layout.twin(sequence, r), p0, p1) && twins_followed;
    }
    if (!twins_followed) impl.truncate_twins(sequence, 0);
    history.remove(p0, p1);
    return true;
}

void ForwardPass::memory_seq_cp(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) {
    Impl & impl = *impl_;
    if (!impl.enabled()) {
        llama_memory_seq_cp(impl.memory, source, destination, p0, p1);
        return;
    }
    if (source == destination) return;
    const auto & from = impl.state(source).history;
    auto & to = impl.state(destination).history;
    const bool is_whole = p0 <= 0 && (p1 < 0 || p1 >= from.next_position());
    if (impl.split_policy == forward::SplitPolicy::equal_sequential && !is_whole) {
        throw Error(ErrorCode::unsupported_call,
                    "memory_seq_cp: part of a sequence can only be copied with a unified KV cache (kv_unified)");
    }
    if (is_whole) p0 = p1 = -1;
    // between streams and between recurrent states a copy replaces what was there; in a unified cache it adds to it
    if (impl.split_policy == forward::SplitPolicy::equal_sequential) to.clear();
    llama_memory_seq_cp(impl.memory, impl.layout.clean(source), impl.layout.clean(destination), p0, p1);
    const bool twins_fit = to.copy_from(from, p0, p1);
    for (uint32_t r = 0; r < impl.layout.n_twins; ++r) {
        const llama_seq_id twin = impl.layout.twin(destination, r);
        if (twins_fit && from.n_twin() > 0) {
            llama_memory_seq_cp(impl.memory, impl.layout.twin(source, r), twin, p0, p1);
        } else {
            llama_memory_seq_rm(impl.memory, twin, -1, -1);
        }
    }
    if (!twins_fit) to.forget_twin();
    // masks go with the tokens: the copy continues the draws of its source
    impl.state(destination).mask_sequence = impl.state(source).mask_sequence;
    impl.state(destination).options = impl.state(source).options;
}

void ForwardPass::memory_seq_keep(llama_seq_id sequence) {
    Impl & impl = *impl_;
    if (!impl.enabled()) {
        llama_memory_seq_keep(impl.memory, sequence);
        return;
    }
    for (uint32_t s = 0; s < impl.layout.n_sequences; ++s) {
        const auto other = static_cast<llama_seq_id>(s);
        if (other != sequence) memory_seq_rm(other, -1, -1);
    }
}

template <typename Move>
void ForwardPass::Impl::move_positions(llama_seq_id sequence, llama_pos p0, Move move) {
    // the twins first: cells of a clean prompt that they share with the clean stream move with it, once
    const llama_pos own = std::max(p0, first_own_position(sequence));
    for (uint32_t r = 0; r < layout.n_twins; ++r) move(layout.twin(sequence, r), own);
    move(layout.clean(sequence), p0);
}

void ForwardPass::memory_seq_add(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
    Impl & impl = *impl_;
    if (!impl.enabled()) {
        llama_memory_seq_add(impl.memory, sequence, p0, p1, delta);
        return;
    }
    impl.move_positions(sequence, p0, [&](llama_seq_id inner, llama_pos from) {
        llama_memory_seq_add(impl.memory, inner, from, p1, delta);
    });
    if (!impl.state(sequence).history.add(p0, p1, delta)) impl.truncate_twins(sequence, 0);
}

void ForwardPass::memory_seq_div(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor) {
    Impl & impl = *impl_;
    if (!impl.enabled()) {
        llama_memory_seq_div(impl.memory, sequence, p0, p1, divisor);
        return;
    }
    impl.move_positions(sequence, p0, [&](llama_seq_id inner, llama_pos from) {
        llama_memory_seq_div(impl.memory, inner, from, p1, divisor);
    });
    if (!impl.state(sequence).history.divide(p0, p1, divisor)) impl.truncate_twins(sequence, 0);
}

llama_pos ForwardPass::memory_seq_pos_min(llama_seq_id sequence) const {
    return llama_memory_seq_pos_min(impl_->memory, impl_->layout.clean(sequence));
}

llama_pos ForwardPass::memory_seq_pos_max(llama_seq_id sequence) const {
    return llama_memory_seq_pos_max(impl_->memory, impl_->layout.clean(sequence));
}

bool ForwardPass::can_continue_at(llama_seq_id sequence, llama_pos position) const {
    const Impl & impl = *impl_;
    const llama_seq_id inner = impl.layout.clean(sequence);
    if (position <= 0 || position > llama_memory_seq_pos_max(impl.memory, inner)) return true;
    const llama_model & model = *llama_get_model(impl.context.get());
    if (llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model)) return false;
    return impl.n_swa == 0 || llama_memory_seq_pos_min(impl.memory, inner) <= std::max(0, position - impl.n_swa);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sequences

void ForwardPass::set_sequence_options(llama_seq_id sequence, const Options & options,
                                       std::optional<uint32_t> mask_sequence) {
    Impl & impl = *impl_;
    validate(options);
    if (!impl.enabled()) {
        throw Error(ErrorCode::invalid_option, "this context was created with HARP off: it has no twins");
    }
    if (sequence < 0 || static_cast<uint32_t>(sequence) >= impl.layout.n_sequences) {
        throw Error(ErrorCode::invalid_option, "sequence " + std::to_string(sequence) + "; allowed: 0.." +
                                                   std::to_string(impl.layout.n_sequences - 1));
    }
    if (options.reframings > impl.layout.n_twins) {
        throw Error(ErrorCode::invalid_option, "option 'reframings': " + std::to_string(options.reframings) +
                                                   "; this context was created for 1.." +
                                                   std::to_string(impl.layout.n_twins));
    }
    SequenceState & state = impl.state(sequence);
    const uint32_t family = mask_sequence.value_or(state.mask_sequence);
    const Options & old = state.options;
    const bool same_twins = old.seed == options.seed && old.perturbation == options.perturbation &&
                            old.strength == options.strength && old.reframings == options.reframings &&
                            old.scope == options.scope && family == state.mask_sequence;
    if (!same_twins) impl.truncate_twins(sequence, 0);
    if (old.scope != options.scope) state.history.apply_scope(options.scope);
    state.options = options;
    state.mask_sequence = family;
}

const Options & ForwardPass::sequence_options(llama_seq_id sequence) const {
    return impl_->state(sequence).options;
}

void ForwardPass::set_prompt_end(llama_seq_id sequence, llama_pos end) {
    if (!impl_->enabled()) return;
    SequenceState & state = impl_->state(sequence);
    impl_->truncate_twins(sequence, state.history.set_prompt_end(end, state.options.scope));
}

void ForwardPass::prepare_twins(llama_seq_id sequence) {
    if (!impl_->enabled()) return;
    const Options & options = impl_->state(sequence).options;
    if (!options.is_vanilla() && options.redraw != 1) impl_->complete_twins(sequence);
}

std::string ForwardPass::check_invariant() const {
    const Impl & impl = *impl_;
    const auto last = [](const forward::TokenHistory & history, size_t n) {
        return n == 0 ? -1 : history.rows()[n - 1].position;
    };
    const auto differs = [&](const std::string & what, llama_seq_id inner, llama_pos expected) -> std::string {
        const llama_pos found = llama_memory_seq_pos_max(impl.memory, inner);
        if (found == expected) return {};
        return what + ": the KV cache ends at position " + std::to_string(found) + ", the history at " +
               std::to_string(expected);
    };
    for (uint32_t i = 0; i < impl.sequences.size(); ++i) {
        const auto s = static_cast<llama_seq_id>(i);
        const auto & history = impl.state(s).history;
        const std::string name = "sequence " + std::to_string(s);
        if (auto text = differs(name, impl.layout.clean(s), last(history, history.size())); !text.empty()) return text;
        for (uint32_t r = 0; r < impl.layout.n_twins; ++r) {
            const bool in_use = r < impl.state(s).options.reframings;
            const llama_pos expected = in_use ? last(history, history.n_twin()) : -1;
            const std::string twin = name + " twin " + std::to_string(r);
            if (auto text = differs(twin, impl.layout.twin(s, r), expected); !text.empty()) return text;
        }
    }
    return {};
}

}  // namespace harp
