// ForwardPass: the caller's batch, and the inner batch made from it: which sequences are fused, and where each row goes.
#include <algorithm>
#include <map>
#include <numeric>

#include "forward/pass_impl.h"

namespace harp {

using forward::CallerRow;
using forward::Sequence;

namespace {

/// Number of positions per row of batch.embd.
size_t positions_per_embedding(const llama_model & model) {
    const llama_rope_type type = llama_model_rope_type(&model);
    return type == LLAMA_ROPE_TYPE_MROPE || type == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1;
}

}  // namespace

forward::BatchLimits ForwardPass::Impl::limits() const {
    const llama_model & model = *llama_get_model(context.get());
    forward::BatchLimits limits;
    limits.n_batch = n_batch;
    limits.n_seq_max = layout.n_sequences;
    limits.n_vocab = n_vocab;
    limits.n_embd = static_cast<size_t>(llama_model_n_embd_inp(&model));
    limits.n_pos = positions_per_embedding(model);
    limits.is_causal = llama_get_causal_attn(context.get());
    return limits;
}

ForwardPass::Impl::Decode ForwardPass::Impl::read(const llama_batch & batch) const {
    Decode call;
    call.rows = forward::read_rows(batch, limits(), [this](llama_seq_id s) { return sequence(s).next_position(); });
    call.marks.resize(layout.n_sequences);
    for (const CallerRow & row : call.rows) {
        for (const llama_seq_id s : row.sequences) {
            auto & mark = call.marks[static_cast<size_t>(s)];
            if (!mark) mark = {sequence(s).size(), row.position, sequence(s).prompt_end()};
        }
    }
    return call;
}

/// Decides which sequences decode their twins' rows in this same batch: all rows are outputs, and the twins are up to
/// date.
void ForwardPass::Impl::plan_fused(Decode & call) {
    call.is_fused.assign(layout.n_sequences, 0);
    std::map<llama_seq_id, size_t> candidates;  // sequence -> its rows in this batch
    const bool is_causal = llama_get_causal_attn(context.get());
    for (const CallerRow & row : call.rows) {
        for (const llama_seq_id s : row.sequences) {
            const Sequence & of_row = sequence(s);
            const Options & options = of_row.options();
            const bool possible = row.is_output && row.sequences.size() == 1 && !row.embedding.chunk && is_causal &&
                                  !options.is_vanilla() && options.schedule != Schedule::lazy && of_row.keeps_twins() &&
                                  of_row.size() > 0 && !of_row.has_pending();
            const auto [it, is_new] = candidates.try_emplace(s, 0);
            if (!possible) {
                it->second = call.rows.size() + 1;  // more than can be reached: not fused
            } else if (is_new || it->second <= call.rows.size()) {
                ++it->second;
            }
        }
    }
    std::erase_if(candidates, [&](const auto & candidate) { return candidate.second > call.rows.size(); });
    size_t n_clean = 0;
    size_t n_twin = 0;
    for (const auto & [s, n] : candidates) {
        if (sequence(s).options().schedule != Schedule::automatic) continue;
        n_clean += n;
        n_twin += n * sequence(s).options().reframings;
    }
    const bool fuse_automatic = n_clean > 0 && n_clean + n_twin <= forward::CostModel::max_rows &&
                                costs.choose(n_clean, n_twin) == Schedule::fused;
    for (const auto & [s, n] : candidates) {
        const bool is_automatic = sequence(s).options().schedule == Schedule::automatic;
        call.is_fused[static_cast<size_t>(s)] = !is_automatic || fuse_automatic ? 1 : 0;
    }
}

/// A hybrid model's second pass may find no room after the first one has moved states that cannot go back. Callers react to
/// a full cache by making room (llama.cpp's server clears idle slots) and decode the batch again, so it must be as it was.
void ForwardPass::Impl::keep_states(Decode & call) const {
    if (!memory.kind().is_recurrent || !memory.kind().shares_cells) return;
    size_t n_cells = 0;  // at most
    for (const Sequence & each : sequences) n_cells += each.n_held();
    for (const CallerRow & row : call.rows) n_cells += row.sequences.size();
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (!call.marks[s]) continue;
        const Options & options = sequences[s].options();
        n_cells += options.reframings * sequences[s].view().n_cells(sequences[s].size() + call.rows.size());
    }
    if (n_cells <= llama_n_ctx(context.get())) return;
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (!call.marks[s] || sequences[s].size() == 0) continue;
        call.marks[s]->state = sequences[s].saved_with_memory(LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    }
}

/// Rows join their sequences before they are decoded, because the next steps look them up there. take_back() undoes it.
void ForwardPass::Impl::append_rows(Decode & call) {
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (call.marks[s]) sequences[s].share_prompt();
    }
    for (const CallerRow & row : call.rows) {
        auto & places = call.places_of_row.emplace_back();
        for (const llama_seq_id s : row.sequences) {
            places.push_back({s, sequence(s).append(row.token, row.position, row.is_output, row.embedding)});
            if (row.sequences.size() > 1) sequence(s).share_cells();
        }
    }
}

/// A sequence whose second pass could no longer be held is full, whether or not it hesitates.
void ForwardPass::Impl::check_twin_room(const Decode & call) const {
    if (n_ctx_twin == 0) return;
    for (size_t s = 0; s < call.marks.size(); ++s) {
        if (!call.marks[s] || sequences[s].options().is_vanilla()) continue;
        const size_t n_cells = sequences[s].view().n_cells(sequences[s].size());
        if (n_cells <= n_ctx_twin) continue;
        throw Error(ErrorCode::context_full, "sequence " + std::to_string(s) + ": its second pass has room for " +
                                                 std::to_string(n_ctx_twin) + " tokens (n_ctx_twin), and needs " +
                                                 std::to_string(n_cells));
    }
}

/// Takes back the plan for sequences of which a row has no second pass (prompt that the view does not change), or whose
/// twins begin anew because rows joined the prompt.
void ForwardPass::Impl::drop_unfit(Decode & call) const {
    for (size_t i = 0; i < call.rows.size(); ++i) {
        const llama_seq_id s = call.rows[i].sequences.front();
        const Sequence & of_row = sequence(s);
        const bool fits = of_row.n_twin() > 0 && of_row.view().differs_at(call.places_of_row[i].front().index);
        if (!fits) call.is_fused[static_cast<size_t>(s)] = 0;
    }
}

/// Lays out the inner batch: the caller's rows, and after (or between) them the twins' rows of fused sequences.
void ForwardPass::Impl::lay_out(Decode & call) {
    call.inner_of_row.assign(call.rows.size(), -1);
    call.twins_of_row.assign(call.rows.size(), {});
    const bool any_fused = std::find(call.is_fused.begin(), call.is_fused.end(), 1) != call.is_fused.end();
    if (layout.is_interleaved && any_fused) return lay_out_by_sequence(call);
    for (size_t i = 0; i < call.rows.size(); ++i) call.inner_of_row[i] = call.inner.add_clean(call.rows[i], layout);
    for (uint32_t r = 0; any_fused && r < layout.n_twins; ++r) {
        for (size_t i = 0; i < call.rows.size(); ++i) add_twin_row(call, i, r);
    }
}

/// By ascending inner ids: for each sequence its clean rows, then the rows of each of its twins.
void ForwardPass::Impl::lay_out_by_sequence(Decode & call) {
    const auto sequence_of = [&](size_t i) { return call.rows[i].sequences.front(); };
    std::vector<size_t> order(call.rows.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sequence_of(a) < sequence_of(b); });
    for (auto begin = order.begin(); begin != order.end();) {
        const auto end =
            std::find_if(begin, order.end(), [&](size_t i) { return sequence_of(i) != sequence_of(*begin); });
        for (auto it = begin; it != end; ++it) call.inner_of_row[*it] = call.inner.add_clean(call.rows[*it], layout);
        for (uint32_t r = 0; r < layout.n_twins; ++r) {
            for (auto it = begin; it != end; ++it) add_twin_row(call, *it, r);
        }
        begin = end;
    }
}

/// Adds the twin's row for the caller's row `i`, if the sequence is fused and has twin `r`.
void ForwardPass::Impl::add_twin_row(Decode & call, size_t i, uint32_t r) {
    const llama_seq_id s = call.rows[i].sequences.front();
    const Sequence & of_row = sequence(s);
    if (call.is_fused[static_cast<size_t>(s)] == 0 || r >= of_row.options().reframings) return;
    const size_t index = call.places_of_row[i].front().index;
    const forward::ViewRow row = of_row.view().read(index, index + 1).back();
    call.twins_of_row[i].push_back(call.inner.add_twin(row, true, s, r, of_row.twin_draw(), of_row.ids().twins[r]));
}

}  // namespace harp
