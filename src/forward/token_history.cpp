#include "forward/token_history.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "harp/error.h"

namespace harp::forward {

namespace {

struct Range {
    llama_pos begin, end;
    [[nodiscard]] bool contains(llama_pos p) const { return begin <= p && p < end; }
};

/// llama.cpp's rule for ranges: negative ends are open.
Range open_range(llama_pos p0, llama_pos p1) {
    return {p0 < 0 ? 0 : p0, p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1};
}

bool increasing(const std::vector<HistoryRow> & rows) {
    return std::adjacent_find(rows.begin(), rows.end(), [](const HistoryRow & a, const HistoryRow & b) {
               return a.position >= b.position;
           }) == rows.end();
}

}  // namespace

llama_pos TokenHistory::next_position() const noexcept {
    return rows_.empty() ? 0 : rows_.back().position + 1;
}

size_t TokenHistory::index_of(llama_pos position) const {
    const auto it = std::lower_bound(rows_.begin(), rows_.end(), position,
                                     [](const HistoryRow & row, llama_pos p) { return row.position < p; });
    assert(it != rows_.end() && it->position == position);
    return static_cast<size_t>(it - rows_.begin());
}

bool TokenHistory::is_reframed(llama_pos position, Scope scope, bool seen_output) const noexcept {
    if (scope == Scope::all) return true;
    return prompt_end_ ? position >= *prompt_end_ : seen_output;
}

bool TokenHistory::would_reframe(llama_pos position, Scope scope) const noexcept {
    return is_reframed(position, scope, seen_output_);
}

void TokenHistory::append(llama_token token, llama_pos position, Scope scope, bool is_output) {
    assert(rows_.empty() || position > rows_.back().position);
    rows_.push_back({token, position, position, would_reframe(position, scope), false, is_output});
    seen_output_ = seen_output_ || is_output;
}

size_t TokenHistory::set_prompt_end(llama_pos end, Scope scope) {
    prompt_end_ = end;
    dropped_hesitations_ = 0;
    for (HistoryRow & row : rows_) row.hesitated = row.hesitated && row.position >= end;
    return apply_scope(scope);
}

size_t TokenHistory::apply_scope(Scope scope) {
    size_t n_same = rows_.size();
    bool seen_output = false;
    for (size_t i = 0; i < rows_.size(); ++i) {
        HistoryRow & row = rows_[i];
        const bool reframed = is_reframed(row.position, scope, seen_output);
        if (reframed != row.reframed) n_same = std::min(n_same, i);
        row.reframed = reframed;
        seen_output = seen_output || row.is_output;
    }
    return n_same;
}

size_t TokenHistory::clean_prefix() const noexcept {
    const auto it = std::find_if(rows_.begin(), rows_.end(), [](const HistoryRow & row) { return row.reframed; });
    return static_cast<size_t>(it - rows_.begin());
}

DrawId TokenHistory::draw_for_hesitation(size_t row, uint32_t redraw) const {
    // The draw is a function of the history alone: rolling back rejected rows rolls back their hesitations too.
    std::vector<size_t> before;
    for (size_t i = 0; i < row; ++i) {
        if (rows_[i].hesitated) before.push_back(i);
    }
    const size_t count = dropped_hesitations_ + before.size();
    const size_t index = redraw == 0 ? 0 : count / redraw;
    const size_t first = index * redraw;  // the hesitation that began the draw, counted from 0
    const bool first_is_known = first >= dropped_hesitations_ && first - dropped_hesitations_ < before.size();
    const size_t first_row = first_is_known ? before[first - dropped_hesitations_] : row;
    return {static_cast<uint32_t>(index), static_cast<uint32_t>(first_row + 1)};
}

void TokenHistory::remove(llama_pos p0, llama_pos p1) {
    if (rows_.empty()) return;
    const Range range = open_range(p0, p1);
    const bool removes_tail = range.contains(rows_.back().position);
    size_t n_twin = 0;
    size_t n_shared = 0;
    std::vector<HistoryRow> kept;
    kept.reserve(rows_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
        if (range.contains(rows_[i].position)) {
            if (!removes_tail && rows_[i].hesitated) ++dropped_hesitations_;
            continue;
        }
        if (i < n_twin_) ++n_twin;
        if (i < n_shared_) ++n_shared;
        kept.push_back(rows_[i]);
    }
    rows_ = std::move(kept);
    n_twin_ = n_twin;
    n_shared_ = n_shared;
    if (rows_.empty()) clear();
}

bool TokenHistory::copy_from(const TokenHistory & source, llama_pos p0, llama_pos p1) {
    const Range range = open_range(p0, p1);
    const bool was_empty = rows_.empty();
    size_t n_twin = 0;
    size_t n_shared = 0;
    for (size_t i = 0; i < source.rows_.size(); ++i) {
        if (!range.contains(source.rows_[i].position)) continue;
        if (i < source.n_twin_) ++n_twin;
        if (i < source.n_shared_) ++n_shared;
        rows_.push_back(source.rows_[i]);
    }
    seen_output_ = seen_output_ || source.seen_output_;
    if (was_empty) {
        n_twin_ = n_twin;
        n_shared_ = n_shared;
        twin_draw_ = source.twin_draw_;
        prompt_end_ = source.prompt_end_;
        dropped_hesitations_ = source.dropped_hesitations_;
        return true;
    }
    std::stable_sort(rows_.begin(), rows_.end(),
                     [](const HistoryRow & a, const HistoryRow & b) { return a.position < b.position; });
    return false;
}

template <typename Change>
bool TokenHistory::change_positions(llama_pos p0, llama_pos p1, Change change) {
    const Range range = open_range(p0, p1);
    for (HistoryRow & row : rows_) {
        if (range.contains(row.position)) row.position = change(row.position);
    }
    // llama.cpp frees cells that a shift moves below zero
    const auto negative = [](const HistoryRow & row) { return row.position < 0; };
    const bool any_gone = std::any_of(rows_.begin(), rows_.end(), negative);
    if (!any_gone && increasing(rows_)) return true;
    for (const HistoryRow & row : rows_) {
        if (negative(row) && row.hesitated) ++dropped_hesitations_;
    }
    rows_.erase(std::remove_if(rows_.begin(), rows_.end(), negative), rows_.end());
    std::stable_sort(rows_.begin(), rows_.end(),
                     [](const HistoryRow & a, const HistoryRow & b) { return a.position < b.position; });
    return false;
}

bool TokenHistory::add(llama_pos p0, llama_pos p1, llama_pos delta) {
    return change_positions(p0, p1, [delta](llama_pos p) { return p + delta; });
}

bool TokenHistory::divide(llama_pos p0, llama_pos p1, int divisor) {
    return change_positions(p0, p1, [divisor](llama_pos p) { return p / divisor; });
}

void TokenHistory::take_back(llama_pos from) {
    const auto wanted = [](const HistoryRow & row) { return row.is_output; };
    const auto first = std::lower_bound(rows_.begin(), rows_.end(), from,
                                        [](const HistoryRow & row, llama_pos p) { return row.position < p; });
    const bool began_the_answer = std::any_of(first, rows_.end(), wanted) && std::none_of(rows_.begin(), first, wanted);
    if (began_the_answer) seen_output_ = false;
    rows_.erase(first, rows_.end());
    n_twin_ = std::min(n_twin_, rows_.size());
    n_shared_ = std::min(n_shared_, n_twin_);
}

void TokenHistory::clear() {
    *this = TokenHistory();
}

TokenHistory::Snapshot TokenHistory::snapshot() const {
    return {rows_, n_twin_, twin_draw_, dropped_hesitations_, seen_output_, prompt_end_};
}

void TokenHistory::restore(Snapshot snapshot) {
    if (snapshot.n_twin > snapshot.rows.size() || !increasing(snapshot.rows)) {
        throw Error(ErrorCode::invalid_state, "saved history is inconsistent");
    }
    rows_ = std::move(snapshot.rows);
    n_twin_ = snapshot.n_twin;
    n_shared_ = 0;
    twin_draw_ = snapshot.twin_draw;
    dropped_hesitations_ = snapshot.dropped_hesitations;
    seen_output_ = snapshot.seen_output;
    if (seen_output_ && !rows_.empty()) rows_.front().is_output = true;  // some row was, which one is not saved
    prompt_end_ = snapshot.prompt_end;
}

}  // namespace harp::forward
