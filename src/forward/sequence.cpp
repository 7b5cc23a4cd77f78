// Sequence: rows and twins. (sequence_memory.cpp has the operations of memory, sequence_state.cpp saves and loads.)
#include "forward/sequence.h"

#include <utility>

namespace harp::forward {

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

llama_pos Sequence::first_row_in_window(llama_seq_id inner, llama_pos end) const {
    const llama_pos begin = window_begin(memory_->kind(), end);
    if (inner != ids_.clean) return view().first_from(begin);
    const auto row = std::find_if(rows_.begin(), rows_.end(), [&](const Row & each) { return each.position >= begin; });
    return row != rows_.end() ? row->position : end;
}

/// Whether the sliding window before `end` is still there.
bool Sequence::holds_window(llama_seq_id inner, llama_pos end) const {
    return forward::holds_window(*memory_, inner, end, first_row_in_window(inner, end));
}

bool Sequence::twins_hold_window() const {
    return n_twin_ == 0 || std::all_of(ids_.twins.begin(), ids_.twins.begin() + options_.reframings,
                                       [&](llama_seq_id twin) { return holds_window(twin, twin_end()); });
}

bool Sequence::can_continue_at(llama_pos position) const {
    return forward::can_continue_at(*memory_, ids_.clean, position, first_row_in_window(ids_.clean, position));
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
    end = std::max(end, 0);
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
    n = std::min(n, rows_.size());                           // it may have been emptied
    while (n > 0 && rows_[n - 1].position >= position) --n;  // rows of a picture that share the position (M-RoPE)
    bool twins_kept = twins_are_alike() || n >= n_prompt_;
    truncate_rows(n);
    const auto cut = [this](llama_seq_id inner, llama_pos end) {
        return (memory_->last(inner) < end || memory_->remove(inner, end, -1)) && holds_window(inner, end);
    };
    if (!cut(ids_.clean, n == 0 ? 0 : position) || memory_->last(ids_.clean) != next_position() - 1) return clear();
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
        done = memory_->remove(ids_.twins[r], end, -1) && holds_window(ids_.twins[r], end);
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
    if (memory_->kind().is_recurrent) share_cells();  // the twins and the clean stream
}

void Sequence::share_prompt_again() {
    const size_t n = n_clean_prefix();
    const llama_pos end = end_of(n);
    const MemoryKind & kind = memory_->kind();
    if (n_twin_ > 0 || n == 0 || !kind.shares_cells || kind.is_recurrent) return;
    // after a division the answer may begin at the prompt's last position
    if (n < rows_.size() && rows_[n].position < end) return;
    if (!holds_window(ids_.clean, end)) return;  // the prompt's last rows are gone in some layers
    for (size_t r = 0; r < options_.reframings; ++r) memory_->copy(ids_.clean, ids_.twins[r], 0, end);
    twins_hold(n, {});
    n_shared_ = n_twin_;
}

/// The first position whose cells the twins do not share with the clean stream.
llama_pos Sequence::first_own_position() const {
    if (n_shared_ == 0) return 0;
    return n_shared_ < rows_.size() ? rows_[n_shared_].position : next_position();
}

// ---------------------------------------------------------------------------------------------------------------------
// Do rows and memory agree?

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
