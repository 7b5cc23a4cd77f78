// A forward pass without a model: sequences on a fake memory, whose cells say what was decoded into them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "forward/sequence.h"
#include "support/fake_memory.h"

namespace harp::testing {

using forward::BatchLimits;
using forward::Draw;
using forward::Reader;
using forward::Row;
using forward::Sequence;
using forward::ViewRow;

inline constexpr int32_t n_vocab = 1000;
inline constexpr BatchLimits limits = {.n_vocab = n_vocab, .n_embd = 2};

inline Options options_with(Scope scope, uint32_t redraw = 0, uint32_t reframings = 1) {
    Options options;
    options.scope = scope;
    options.redraw = redraw;
    options.reframings = reframings;
    return options;
}

inline std::string clean_content(const Row & row) {
    return std::to_string(row.token);
}

/// What a twin's row should hold. A clean row is equal to the clean stream's; in a copied prompt it is the same cell.
inline std::string twin_content(const Sequence & sequence, size_t i, const Draw & draw, size_t reframing) {
    const Row & row = sequence.rows()[i];
    if (!sequence.view().is_reframed(i)) return clean_content(row);
    return clean_content(row) + "/" + std::to_string(row.ordinal) + "/" + std::to_string(draw.index) + "/" +
           std::to_string(sequence.mask_family()) + "/" + std::to_string(reframing);
}

/// Sequences on a fake memory, with the decodes that ForwardPass would do.
struct FakePass {
    FakeMemory memory;
    std::vector<Sequence> sequences;

    FakePass(FakeMemory::Kind kind, size_t n, const Options & options) : memory(kind) {
        const auto n_twins = static_cast<llama_seq_id>(options.reframings);
        for (size_t s = 0; s < n; ++s) {
            const auto id = static_cast<llama_seq_id>(s);
            Sequence::Ids ids{id * (1 + n_twins), {}};
            for (llama_seq_id r = 0; r < n_twins; ++r) ids.twins.push_back(ids.clean + 1 + r);
            sequences.emplace_back(memory, id, ids, options);
        }
    }
    Sequence & operator[](size_t s) { return sequences[s]; }

    /// Decodes one row at the end of the sequence.
    void decode(size_t s, llama_token token, bool is_output = true, bool hesitates = false) {
        Sequence & sequence = sequences[s];
        sequence.share_prompt();
        const size_t i = sequence.append(token, sequence.next_position(), is_output);
        memory.decode(sequence.ids().clean, sequence.rows()[i].position, clean_content(sequence.rows()[i]));
        if (!hesitates) return;
        sequence.mark_hesitation(i, true);
        catch_up(s);
    }
    void decode_many(size_t s, llama_token first, size_t n) {
        for (size_t i = 0; i < n; ++i) decode(s, first + static_cast<llama_token>(i));
    }
    /// Runs a second pass for a hesitation at the last row.
    void catch_up(size_t s) {
        Sequence & sequence = sequences[s];
        if (sequence.size() == 0) return;
        const size_t last = sequence.size() - 1;
        if (!has_masks(sequence.options().view) && !sequence.view().differs_at(last)) return;
        const Draw draw = sequence.due_draw(last);
        sequence.cut_twins(draw == sequence.twin_draw() ? last : sequence.n_clean_prefix());
        sequence.share_prompt_again();
        complete(s, draw);
    }
    void complete(size_t s, const Draw & draw) {
        Sequence & sequence = sequences[s];
        for (size_t r = 0; r < sequence.options().reframings; ++r) {
            for (const ViewRow & row : sequence.view().read(sequence.n_twin(), sequence.size())) {
                memory.decode(sequence.ids().twins[r], row.position,
                              row.is_reframed ? twin_content(sequence, row.index, draw, r) : std::to_string(row.token));
            }
        }
        sequence.twins_hold(sequence.size(), draw);
        if (sequence.options().view == View::last) sequence.empty_twins();
    }
    /// Like ForwardPass: before rows in the middle are removed, twins that stay in use decode their pending rows.
    bool remove(size_t s, llama_pos p0, llama_pos p1) {
        Sequence & sequence = sequences[s];
        const bool is_middle = p1 >= 0 && p1 < sequence.next_position();
        const bool has_copies = sequence.n_twin() > 0 && has_masks(sequence.options().view);
        if (is_middle && has_copies && sequence.due_draw(sequence.size()) == sequence.twin_draw()) {
            complete(s, sequence.twin_draw());
        }
        return sequence.remove(p0, p1);
    }
    [[nodiscard]] std::vector<uint8_t> save(size_t s, llama_state_seq_flags flags = 0) const {
        return sequences[s].saved_with_memory(flags);
    }
    void load(size_t s, const std::vector<uint8_t> & bytes, llama_state_seq_flags flags = 0) {
        Reader in(bytes);
        sequences[s].load_with_memory(in, &limits, flags);
    }
};

/// For each row "token@position", "/ordinal" if that differs from the position, "!" if hesitated, "-" if not reframed.
inline std::string rows_as_text(const Sequence & sequence) {
    std::string out;
    for (size_t i = 0; i < sequence.size(); ++i) {
        const Row & row = sequence.rows()[i];
        if (!out.empty()) out += ' ';
        out.append(std::to_string(row.token)).append("@").append(std::to_string(row.position));
        if (row.ordinal != static_cast<uint32_t>(row.position)) out.append("/").append(std::to_string(row.ordinal));
        if (row.hesitated) out += '!';
        if (!sequence.view().is_reframed(i)) out += '-';
    }
    return out;
}

}  // namespace harp::testing
