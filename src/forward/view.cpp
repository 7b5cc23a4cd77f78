#include "forward/view.h"

#include <algorithm>

namespace harp::forward {

bool ViewOf::is_reframed(size_t i) const noexcept {
    return has_masks(options.view) && (options.scope == Scope::all || i >= n_prompt);
}

bool ViewOf::differs_at(size_t i) const noexcept {
    switch (options.view) {
        case View::perturbed:
        case View::masked: return is_reframed(i);
        case View::guidance:
            if (!is_prompt_complete || i + 1 < n_prompt) return false;
            return !negative_prompt.empty() || (n_prompt > 1 && !rows[n_prompt - 1].embedding.chunk);
        case View::last: {
            const size_t begin = first_read(0, i + 1);
            return begin > 0 && begin <= i;
        }
    }
    return false;
}

size_t ViewOf::least() const noexcept {
    return options.view == View::guidance ? std::max<size_t>(n_prompt, 1) : 1;
}

size_t ViewOf::n_cells(size_t end) const noexcept {
    const size_t n_answer = end - std::min(end, n_prompt);
    switch (options.view) {
        case View::perturbed:
        case View::masked: return options.scope == Scope::generated ? n_answer : end;
        case View::guidance:
            return negative_prompt.empty() ? end - std::min(end, least() - 1) : n_answer + negative_prompt.size();
        case View::last: return std::min<size_t>(end, options.view_tokens);
    }
    return end;
}

llama_pos ViewOf::offset() const noexcept {
    if (options.view != View::guidance || negative_prompt.empty()) return 0;
    const llama_pos end_of_prompt = n_prompt == 0 ? 0 : rows[n_prompt - 1].position + 1;
    return static_cast<llama_pos>(negative_prompt.size()) - end_of_prompt;
}

llama_pos ViewOf::first_from(llama_pos begin) const noexcept {
    const bool is_guidance = options.view == View::guidance;
    if (is_guidance && begin < static_cast<llama_pos>(negative_prompt.size())) return begin;
    for (size_t i = is_guidance ? first_read(0, rows.size()) : 0; i < rows.size(); ++i) {
        if (rows[i].position + offset() >= begin) return rows[i].position + offset();
    }
    return std::numeric_limits<llama_pos>::max();
}

size_t ViewOf::first_read(size_t n_held, size_t end) const noexcept {
    if (options.view == View::guidance) {
        if (n_held > 0) return n_held;
        return negative_prompt.empty() ? least() - 1 : n_prompt;
    }
    if (options.view != View::last) return n_held;
    size_t begin = end - std::min<size_t>(end, options.view_tokens);
    for (size_t i = begin; i < end; ++i) {  // a picture cannot be read in part, so start after it
        if (rows[i].embedding.chunk) begin = i + 1;
    }
    return begin;
}

std::vector<ViewRow> ViewOf::read(size_t n_held, size_t end) const {
    std::vector<ViewRow> read_rows;
    if (options.view == View::guidance && n_held == 0) {
        for (const llama_token token : negative_prompt) {
            read_rows.push_back({token, static_cast<llama_pos>(read_rows.size())});
        }
        if (!read_rows.empty() && n_prompt > 0) read_rows.back().index = n_prompt - 1;
    }
    const llama_pos moved = offset();
    for (size_t i = first_read(n_held, end); i < end; ++i) {
        const Row & row = rows[i];
        read_rows.push_back({row.token, row.position + moved, is_reframed(i), row.ordinal, row.embedding, i});
    }
    return read_rows;
}

}  // namespace harp::forward
