// Sequence: the operations of memory, like llama.cpp's: remove, copy, move positions.
#include <limits>
#include <utility>

#include "forward/sequence.h"

namespace harp::forward {

/// A range by llama.cpp's rule: negative ends are open.
struct Sequence::Range {
    llama_pos begin, end;

    Range(llama_pos p0, llama_pos p1)
        : begin(std::max(p0, 0)), end(p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1) {}
    [[nodiscard]] bool contains(llama_pos p) const { return begin <= p && p < end; }
};

/// Removes the range from the clean stream, from each twin (which may hold fewer rows), and from the rows.
///
///   clean   t0 t1 [t2 t3] t4 t5
///   twin    t0 t1 [t2   ]
bool Sequence::remove(llama_pos p0, llama_pos p1) {
    const Range range(p0, p1);
    const auto gone = [&](const Row & row) { return range.contains(row.position); };
    if (std::none_of(rows_.begin(), rows_.end(), gone)) return true;
    if (std::all_of(rows_.begin(), rows_.end(), gone)) {
        clear();
        return true;
    }
    const bool is_tail = gone(rows_.back());
    if (is_tail && !can_continue_at(range.begin)) return false;
    if (!memory_->remove(ids_.clean, p0, p1)) return false;

    bool twins_follow = true;
    if (twins_are_alike()) {
        for (const llama_seq_id twin : ids_.twins) twins_follow = memory_->remove(twin, p0, p1) && twins_follow;
    } else if (is_tail) {
        cut_twins(static_cast<size_t>(std::find_if(rows_.begin(), rows_.end(), gone) - rows_.begin()));
    } else {
        empty_twins();
    }
    size_t n_prompt = 0;
    size_t n_twin = 0;
    size_t n_shared = 0;
    std::vector<Row> kept;
    kept.reserve(rows_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
        if (gone(rows_[i])) {
            if (!is_tail && rows_[i].hesitated) ++dropped_hesitations_;
            continue;
        }
        n_prompt += i < n_prompt_ ? 1 : 0;
        n_twin += i < n_twin_ ? 1 : 0;
        n_shared += i < n_shared_ ? 1 : 0;
        kept.push_back(std::move(rows_[i]));
    }
    rows_ = std::move(kept);
    n_prompt_ = n_prompt;
    n_twin_ = n_twin;
    n_shared_ = n_shared;
    settle_prompt_end();
    if (!twins_follow || (is_tail && !twins_hold_window())) empty_twins();
    check();
    return true;
}

void Sequence::copy_from(Sequence & source, llama_pos p0, llama_pos p1) {
    if (&source == this) return;
    const Range range(p0, p1);
    const bool is_whole = range.begin == 0 && range.end >= source.next_position();
    const bool shares = memory_->kind().shares_cells;
    if (!shares && !is_whole) {
        throw Error(ErrorCode::unsupported_call,
                    "memory_seq_cp: part of a sequence can only be copied with a unified KV cache (kv_unified)");
    }
    if (is_whole) p0 = p1 = -1;
    const llama_pos first_needed = std::max(range.begin, source.first_row_in_window(source.ids_.clean, range.end));
    if (!is_whole && !forward::can_continue_at(*memory_, source.ids_.clean, range.end, first_needed)) {
        throw Error(ErrorCode::unsupported_call,
                    "memory_seq_cp: the rows before position " + std::to_string(range.end) +
                        " cannot be copied without those behind them: the memory of this model cannot go back there");
    }
    if (!shares || rows_.empty()) clear();  // without shared cells a copy replaces everything
    const bool replaces = rows_.empty();
    const bool prompt_grows = !prompt_end_ && is_prompt_open();  // it is put together from parts
    llama_pos prompt_end = prompt_end_.value_or(end_of(n_prompt_));
    memory_->copy(source.ids_.clean, ids_.clean, p0, p1);
    if (!source.rows_.empty()) {
        share_cells();
        source.share_cells();
    }

    size_t n_prompt = 0;
    size_t n_twin = 0;
    size_t n_shared = 0;
    for (size_t i = 0; i < source.rows_.size(); ++i) {
        if (!range.contains(source.rows_[i].position)) continue;
        n_prompt += i < source.n_prompt_ ? 1 : 0;
        n_twin += i < source.n_twin_ ? 1 : 0;
        n_shared += i < source.n_shared_ ? 1 : 0;
        if (prompt_grows && i < source.n_prompt_) prompt_end = std::max(prompt_end, source.rows_[i].position + 1);
        rows_.push_back(source.rows_[i]);
    }
    if (replaces) {
        options_ = source.options_;
        negative_prompt_ = source.negative_prompt_;
        mask_family_ = source.mask_family_;  // masks belong to the rows: the copy continues the source's draws
        n_prompt_ = n_prompt;
        prompt_end_ = source.prompt_end_;
        dropped_hesitations_ = source.dropped_hesitations_;
        twin_draw_ = source.twin_draw_;
        n_twin_ = is_whole || twins_are_alike() ? n_twin : 0;
        n_shared_ = n_shared;
        for (size_t r = 0; n_twin_ > 0 && r < ids_.twins.size(); ++r) {
            memory_->copy(source.ids_.twins[r], ids_.twins[r], p0, p1);
        }
        settle_prompt_end();
        if (!twins_hold_window()) empty_twins();
    } else {
        empty_twins();  // they would not hold a prefix of these rows
        std::stable_sort(rows_.begin(), rows_.end(),
                         [](const Row & a, const Row & b) { return a.position < b.position; });
        n_prompt_ = n_below(prompt_end);
    }
    check();
}

/// @return false if the twins no longer hold a prefix of the rows
template <typename Change>
bool Sequence::change_positions(llama_pos p0, llama_pos p1, Change change) {
    const Range range(p0, p1);
    const bool end_moves = prompt_end_ && is_prompt_open() && !rows_.empty() && range.contains(rows_.back().position);
    bool changed = false;
    for (Row & row : rows_) {
        if (!range.contains(row.position)) continue;
        const llama_pos before = std::exchange(row.position, change(row.position));
        changed = changed || row.position != before;
    }
    if (end_moves) prompt_end_ = std::max(0, change(*prompt_end_));
    // llama.cpp frees cells that a shift moves below zero
    const auto negative = [](const Row & row) { return row.position < 0; };
    const auto out_of_order = [](const Row & a, const Row & b) {
        // a picture's rows may share a position
        return a.position > b.position || (a.position == b.position && !a.embedding.chunk);
    };
    const bool keeps_order = std::adjacent_find(rows_.begin(), rows_.end(), out_of_order) == rows_.end();
    if (!changed || (keeps_order && std::none_of(rows_.begin(), rows_.end(), negative))) return true;
    for (const Row & row : rows_) dropped_hesitations_ += negative(row) && row.hesitated ? 1U : 0U;
    n_prompt_ -= static_cast<size_t>(
        std::count_if(rows_.begin(), rows_.begin() + static_cast<std::ptrdiff_t>(n_prompt_), negative));
    std::erase_if(rows_, negative);
    std::stable_sort(rows_.begin(), rows_.end(), [](const Row & a, const Row & b) { return a.position < b.position; });
    return false;
}

/// Shared cells move for all sequences that share them, so before a move this sequence needs cells of its own. The only
/// way to get them is to save and load the sequence.
void Sequence::own_cells() {
    if (!may_share_cells_) return;
    const std::vector<uint8_t> bytes = saved_with_memory(LLAMA_STATE_SEQ_FLAGS_NONE);
    Reader in(bytes);
    load_with_memory(in, /*limits=*/nullptr, LLAMA_STATE_SEQ_FLAGS_NONE);
}

/// Moves the twins first, and only their own cells: cells shared with the clean stream (a clean prompt) then move once.
template <typename Move, typename Change>
void Sequence::move(llama_pos p0, llama_pos p1, Move move_cells, Change change) {
    const Range range(p0, p1);
    const auto moves = [&](const Row & row) {
        return range.contains(row.position) && change(row.position) != row.position;
    };
    if (std::none_of(rows_.begin(), rows_.end(), moves)) return;
    if (!memory_->kind().can_shift) {
        throw Error(ErrorCode::unsupported_call, "the memory of this model cannot change positions (no context shift)");
    }
    own_cells();
    if (!twins_are_alike()) empty_twins();
    const llama_pos own = std::max(p0, first_own_position());
    for (const llama_seq_id twin : ids_.twins) {
        if (n_twin_ > 0) move_cells(twin, own);
    }
    move_cells(ids_.clean, p0);
    if (!change_positions(p0, p1, change)) empty_twins();
    settle_prompt_end();
    check();
}

void Sequence::add(llama_pos p0, llama_pos p1, llama_pos delta) {
    move(
        p0, p1, [&](llama_seq_id inner, llama_pos from) { memory_->add(inner, from, p1, delta); },
        [delta](llama_pos p) { return p + delta; });
}

void Sequence::divide(llama_pos p0, llama_pos p1, int divisor) {
    move(
        p0, p1, [&](llama_seq_id inner, llama_pos from) { memory_->divide(inner, from, p1, divisor); },
        [divisor](llama_pos p) { return p / divisor; });
}

}  // namespace harp::forward
