#include "forward/sequence.h"

#include <limits>
#include <utility>

namespace harp::forward {

/// A range by llama.cpp's rule: negative ends are open.
struct Sequence::Range {
    llama_pos begin, end;

    Range(llama_pos p0, llama_pos p1)
        : begin(std::max(p0, 0)), end(p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1) {}
    [[nodiscard]] bool contains(llama_pos p) const { return begin <= p && p < end; }
};

Sequence::Sequence(Memory & memory, llama_seq_id id, Ids ids, const Options & options)
    : memory_(&memory), id_(id), ids_(std::move(ids)), options_(options), mask_family_(static_cast<uint32_t>(id)) {}

void Sequence::set_options(const Options & options, uint32_t mask_family) {
    const Options & old = options_;
    const bool same_twins = old.view == options.view && old.seed == options.seed &&
                            old.perturbation == options.perturbation && old.strength == options.strength &&
                            old.reframings == options.reframings && old.scope == options.scope &&
                            mask_family == mask_family_;
    if (!same_twins) empty_twins();
    options_ = options;
    mask_family_ = mask_family;
}

void Sequence::set_negative_prompt(std::vector<llama_token> tokens) {
    if (options_.view == View::guidance && tokens != negative_prompt_) empty_twins();
    negative_prompt_ = std::move(tokens);
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows

llama_pos Sequence::next_position() const noexcept {
    return end_of(rows_.size());
}

/// The position after the first n rows.
llama_pos Sequence::end_of(size_t n) const {
    return n == 0 ? 0 : rows_[n - 1].position + 1;
}

/// Number of rows at positions < `end`.
size_t Sequence::n_below(llama_pos end) const {
    return static_cast<size_t>(
        std::count_if(rows_.begin(), rows_.end(), [&](const Row & row) { return row.position < end; }));
}

/// The position after the rows that the twins hold, counted in the twins' positions.
llama_pos Sequence::twin_end() const {
    return n_twin_ == 0 ? 0 : end_of(n_twin_) + view().offset();
}

bool Sequence::is_prompt_open() const noexcept {
    if (n_prompt_ < rows_.size()) return false;
    return prompt_end_ || rows_.empty() || !rows_.back().is_output;
}

bool Sequence::in_prompt(llama_pos position) const noexcept {
    return is_prompt_open() && (!prompt_end_ || position < *prompt_end_);
}

ViewOf Sequence::view() const noexcept {
    const bool is_complete =
        n_prompt_ < rows_.size() || (prompt_end_ ? next_position() >= *prompt_end_ : !is_prompt_open());
    return {options_, rows_, n_prompt_, is_complete, negative_prompt_};
}

size_t Sequence::n_clean_prefix() const noexcept {
    return options_.scope == Scope::all || !has_masks(options_.view) ? 0 : n_prompt_;
}

void Sequence::set_prompt_end(llama_pos end) {
    const size_t before = n_prompt_;
    // the same end again, while the answer grows (llama.cpp's server, for each batch of a text that is scored)
    if (prompt_end_ == end && before < rows_.size() && n_below(end) == before) return;
    prompt_end_ = end;
    dropped_hesitations_ = 0;
    n_prompt_ = n_below(end);
    for (size_t i = 0; i < n_prompt_; ++i) rows_[i].hesitated = false;
    if (n_prompt_ == before) return;
    if (!twins_are_alike()) {
        empty_twins();
    } else if (options_.scope == Scope::generated) {
        cut_twins(std::min(before, n_prompt_));
    }
}

/// Once rows follow the prompt, its end is the position after its last row, which may have moved since the end was set.
void Sequence::settle_prompt_end() {
    if (prompt_end_ && n_prompt_ < rows_.size()) prompt_end_ = end_of(n_prompt_);
}

size_t Sequence::append(llama_token token, llama_pos position, bool is_output, EmbeddingRow embedding) {
    const bool is_prompt = in_prompt(position);
    rows_.push_back({token, position, next_ordinal(), false, is_output, std::move(embedding)});
    if (is_prompt) n_prompt_ = rows_.size();
    if (is_prompt && n_twin_ > 0 && !twins_are_alike()) empty_twins();
    return rows_.size() - 1;
}

void Sequence::mark_hesitation(size_t i, bool hesitated) {
    const bool in_prompt = i + 1 < n_prompt_ || this->in_prompt(rows_[i].position + 1);
    rows_[i].hesitated = hesitated && !in_prompt;
}

void Sequence::truncate_rows(size_t n) {
    rows_.resize(n);
    n_prompt_ = std::min(n_prompt_, n);
    n_twin_ = std::min(n_twin_, n);
    n_shared_ = std::min(n_shared_, n_twin_);
}

void Sequence::forget() noexcept {
    rows_.clear();
    n_prompt_ = n_twin_ = n_shared_ = 0;
    prompt_end_.reset();
    twin_draw_ = {};
    may_share_cells_ = false;
    dropped_hesitations_ = 0;
}

void Sequence::clear() {
    memory_->remove(ids_.clean, -1, -1);
    empty_twins();
    forget();
}

/// After a failed decode memory may hold some rows of the batch.
///
///   clean  t0 t1 t2 | x x x .      from `position` on: removed
///   twin   t0 t1 | x               after the rows that n_twin_ counts: removed
void Sequence::take_back(size_t n, llama_pos position) {
    while (n > 0 && rows_[n - 1].position >= position) --n;  // rows of a picture that share the position (M-RoPE)
    bool twins_kept = twins_are_alike() || n >= n_prompt_;
    truncate_rows(n);
    const auto cut = [this](llama_seq_id inner, llama_pos end) {
        if (memory_->last(inner) < end) return holds_window(*memory_, inner, end);
        return memory_->remove(inner, end, -1) && holds_window(*memory_, inner, end);
    };
    if (!cut(ids_.clean, position) || memory_->last(ids_.clean) != next_position() - 1) return clear();
    twins_kept = twins_kept && (n_twin_ == 0 || n_twin_ >= view().least());
    for (size_t r = 0; r < options_.reframings; ++r) twins_kept = cut(ids_.twins[r], twin_end()) && twins_kept;
    if (!twins_kept) empty_twins();
    if (!disagreement().empty()) clear();
}

// ---------------------------------------------------------------------------------------------------------------------
// Twins

void Sequence::empty_twins() {
    for (const llama_seq_id twin : ids_.twins) memory_->remove(twin, -1, -1);
    n_twin_ = n_shared_ = 0;
}

void Sequence::cut_twins(size_t n) {
    if (n >= n_twin_) return;
    llama_pos end = rows_[n].position;  // a position may belong to several rows: of a picture, or after a division
    while (n > 0 && rows_[n - 1].position == end) --n;
    end += view().offset();
    bool done = n >= view().least();
    for (size_t r = 0; done && r < options_.reframings; ++r) {
        done = memory_->remove(ids_.twins[r], end, -1) && holds_window(*memory_, ids_.twins[r], end);
    }
    if (!done) return empty_twins();
    n_twin_ = n;
    n_shared_ = std::min(n_shared_, n);
}

void Sequence::twins_hold(size_t n, const Draw & draw) noexcept {
    n_twin_ = n;
    n_shared_ = std::min(n_shared_, n);
    twin_draw_ = draw;
}

/// Computed from the rows alone, so that taking rows back takes back their hesitations too.
Draw Sequence::due_draw(size_t i) const {
    if (!has_masks(options_.view)) return {};
    const bool length_matters = options_.perturbation == Perturbation::uniform;
    if (options_.redraw == 0 && !length_matters) return {};
    std::vector<size_t> before;  // rows that hesitated
    for (size_t k = 0; k < i; ++k) {
        if (rows_[k].hesitated) before.push_back(k);
    }
    const size_t count = dropped_hesitations_ + before.size();
    const size_t index = options_.redraw == 0 ? 0 : count / options_.redraw;
    if (!length_matters) return {static_cast<uint32_t>(index), 1};
    const size_t first = index * options_.redraw;          // number of the draw's first hesitation, counted from 0
    const bool is_dropped = first < dropped_hesitations_;  // its row is gone, but not the length that it had
    if (is_dropped && n_twin_ > 0 && twin_draw_.index == index) return twin_draw_;
    const bool is_known = !is_dropped && first - dropped_hesitations_ < before.size();
    const size_t first_row = is_known ? before[first - dropped_hesitations_] : i;
    return {static_cast<uint32_t>(index), static_cast<uint32_t>(first_row + 1)};
}

/// Scope::generated: at the end of the prompt the clean stream holds exactly what the twins would hold.
///
///   clean   p0 p1 p2 p3 | next: the first reframed row
///   twin    ^^ the same cells (unified cache: shared; separate streams: copied once)
void Sequence::share_prompt() {
    const bool at_prompt_end =
        !rows_.empty() && n_clean_prefix() == rows_.size() && has_pending() && !in_prompt(next_position());
    if (!at_prompt_end) return;
    empty_twins();
    for (size_t r = 0; r < options_.reframings; ++r) memory_->copy(ids_.clean, ids_.twins[r], -1, -1);
    twins_hold(rows_.size(), {});
    if (memory_->kind().shares_cells) n_shared_ = n_twin_;
}

/// The first position whose cells the twins do not share with the clean stream.
llama_pos Sequence::first_own_position() const {
    if (n_shared_ == 0) return 0;
    return n_shared_ < rows_.size() ? rows_[n_shared_].position : next_position();
}

// ---------------------------------------------------------------------------------------------------------------------
// Operations of memory

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
    if (is_tail && !can_continue_at(*memory_, ids_.clean, range.begin)) return false;
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
    const bool window_lost = is_tail && n_twin_ > 0 &&
                             std::any_of(ids_.twins.begin(), ids_.twins.begin() + options_.reframings,
                                         [&](llama_seq_id twin) { return !holds_window(*memory_, twin, twin_end()); });
    if (!twins_follow || window_lost) empty_twins();
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
    if (end_moves) prompt_end_ = change(*prompt_end_);
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
    Writer counting;
    save_with_memory(counting, LLAMA_STATE_SEQ_FLAGS_NONE);
    std::vector<uint8_t> bytes(counting.size());
    Writer out(bytes);
    save_with_memory(out, LLAMA_STATE_SEQ_FLAGS_NONE);
    Reader in(bytes);
    load_with_memory(in, std::numeric_limits<int32_t>::max(), LLAMA_STATE_SEQ_FLAGS_NONE);
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

std::string Sequence::disagreement() const {
    const auto differs = [&](const std::string & what, llama_seq_id inner, llama_pos end) -> std::string {
        const llama_pos found = memory_->last(inner);
        if (found == end - 1) return {};
        return "sequence " + std::to_string(id_) + what + ": memory ends at position " + std::to_string(found) +
               ", the rows at " + std::to_string(end - 1);
    };
    if (auto text = differs("", ids_.clean, next_position()); !text.empty()) return text;
    for (size_t r = 0; r < ids_.twins.size(); ++r) {
        const llama_pos end = r < options_.reframings ? twin_end() : 0;
        if (auto text = differs(" twin " + std::to_string(r), ids_.twins[r], end); !text.empty()) return text;
    }
    return {};
}

void Sequence::check() const {
    if (const std::string text = disagreement(); !text.empty()) throw Error(ErrorCode::invalid_state, text);
}

}  // namespace harp::forward
