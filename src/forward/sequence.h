// One of the caller's sequences: its rows, and its clean stream and reframed twins in memory.
//
//   rows      t0  t1  t2  t3  t4  t5        the clean stream holds all of them
//   twins     ██  ██  ██  ██                n_twin = 4: each twin holds the view (view.h) of these rows, by one draw
//   pending                   t4  t5        decoded for the twins at the next hesitation
//
// Each operation changes memory and bookkeeping together, and ends with a check that they agree. ForwardPass does the
// decodes, and then tells the sequence what they have put into memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "forward/bytes.h"
#include "forward/memory.h"
#include "forward/view.h"
#include "harp/options.h"
#include "llama.h"

namespace harp::forward {

/// Identifies the masks with which a twin's rows were perturbed.
struct Draw {
    uint32_t index = 0;
    uint32_t length = 1;  ///< rows at the draw's first hesitation, if the noise depends on it; else 1
    bool operator==(const Draw &) const = default;
};

class Sequence {
  public:
    /// Inner sequence ids.
    struct Ids {
        llama_seq_id clean = 0;
        std::vector<llama_seq_id> twins;  ///< [most reframings]
    };

    /// @param memory borrowed
    /// @param id     the caller's id, for messages; also its first mask family
    Sequence(Memory & memory, llama_seq_id id, Ids ids, const Options & options);

    [[nodiscard]] const Ids & ids() const noexcept { return ids_; }
    [[nodiscard]] const Options & options() const noexcept { return options_; }
    [[nodiscard]] uint32_t mask_family() const noexcept { return mask_family_; }
    /// Empties the twins if anything that shapes them changes: view, seed, perturbation, strength, reframings,
    /// scope, mask family.
    void set_options(const Options & options, uint32_t mask_family);
    /// What View::guidance reads instead of the prompt; empty: only the prompt's last token.
    void set_negative_prompt(std::vector<llama_token> tokens);

    // --- rows
    [[nodiscard]] const std::vector<Row> & rows() const noexcept { return rows_; }
    [[nodiscard]] size_t size() const noexcept { return rows_.size(); }
    [[nodiscard]] llama_pos next_position() const noexcept;
    [[nodiscard]] uint32_t next_ordinal() const noexcept { return rows_.empty() ? 0 : rows_.back().ordinal + 1; }
    /// What the twins read.
    [[nodiscard]] ViewOf view() const noexcept;
    /// Number of leading rows that are not perturbed in the twins either: the prompt under Scope::generated, else 0.
    [[nodiscard]] size_t n_clean_prefix() const noexcept;

    /// Rows at positions < `end` are prompt, both those held and those to come; hesitations of held ones no longer
    /// count. Without a call, all rows up to the first output row are prompt.
    void set_prompt_end(llama_pos end);
    /// What was set, while no later row is appended.
    [[nodiscard]] std::optional<llama_pos> prompt_end() const noexcept { return prompt_end_; }

    // --- twins
    [[nodiscard]] size_t n_twin() const noexcept { return n_twin_; }
    /// Whether a second pass can reuse what the twins hold from the one before.
    [[nodiscard]] bool keeps_twins() const noexcept {
        return options_.view != View::last && (options_.redraw != 1 || !has_masks(options_.view));
    }
    [[nodiscard]] bool has_pending() const noexcept { return n_twin_ < rows_.size(); }
    [[nodiscard]] const Draw & twin_draw() const noexcept { return twin_draw_; }
    /// The draw for a hesitation at row `i`: a new one after every Options::redraw hesitations.
    [[nodiscard]] Draw due_draw(size_t i) const;
    /// Cuts the twins to their first `n` rows; empties them if they cannot be cut there.
    void cut_twins(size_t n);
    void empty_twins();
    /// At the end of a clean prompt: makes the twins copies of the clean stream.
    void share_prompt();
    /// Behind a clean prompt, for twins that begin anew: gives them the prompt's cells where memory can share a part.
    void share_prompt_again();

    // --- what a decode has put into memory
    /// @return the row's index
    size_t append(llama_token token, llama_pos position, bool is_output, EmbeddingRow embedding = {});
    void twins_hold(size_t n, const Draw & draw) noexcept;
    /// Hesitations inside the prompt do not count for Options::redraw; that of its last row is the answer's first.
    void mark_hesitation(size_t i, bool hesitated);
    /// Undoes a failed decode: removes rows from index `n` on, and from memory everything from `position` on. If memory
    /// cannot do that, the sequence is emptied.
    void take_back(size_t n, llama_pos position);

    // --- operations of memory, like llama.cpp's
    /// @return false, changing nothing, if it cannot be cut there
    bool remove(llama_pos p0, llama_pos p1);
    /// Whether the clean stream, cut at `position`, would still hold every row that a token there attends to.
    [[nodiscard]] bool can_continue_at(llama_pos position) const;
    /// If the copy replaces everything that was here, options and mask family are copied too.
    void copy_from(Sequence & source, llama_pos p0, llama_pos p1);
    /// Copies cells first that another sequence may share. The caller makes sure that there is room (may_share_cells).
    /// @throws Error{unsupported_call} if memory cannot change positions
    void add(llama_pos p0, llama_pos p1, llama_pos delta);
    void divide(llama_pos p0, llama_pos p1, int divisor);
    [[nodiscard]] bool may_share_cells() const noexcept { return may_share_cells_; }
    /// Another sequence has some of the same rows. No-op if memory gives each its own cells. (A copy of a recurrent state
    /// is the same cell until one of the two is decoded.)
    void share_cells() noexcept { may_share_cells_ = memory_->kind().shares_cells || memory_->kind().is_recurrent; }
    /// Rows of the clean stream plus rows of the twins; shared rows count for each.
    [[nodiscard]] size_t n_held() const noexcept { return rows_.size() + options_.reframings * n_twin_; }
    void clear();
    /// Forgets the rows without touching memory, which the caller has cleared.
    void forget() noexcept;

    // --- state: rows and draws; with save_with_memory() also what memory holds of the clean stream and the twins
    void save_rows(Writer & out) const;
    void save_with_memory(Writer & out, llama_state_seq_flags flags) const;
    [[nodiscard]] std::vector<uint8_t> saved_with_memory(llama_state_seq_flags flags) const;

    /// What save_rows() wrote: checked, but not yet adopted.
    struct Saved {
        std::vector<Row> rows;
        size_t n_prompt = 0, n_twin = 0, n_shared = 0;
        std::optional<llama_pos> prompt_end;
        Draw twin_draw;
        uint32_t dropped_hesitations = 0;
        bool same_masks = false;  ///< its twins are what this sequence's options would give
    };
    /// @param limits what rows of the model are like; null for what this sequence saved itself
    /// @throws Error{invalid_state}
    [[nodiscard]] Saved read_rows(Reader & in, const BatchLimits * limits) const;
    /// Takes over saved rows whose memory the context has already loaded.
    void adopt(Saved saved);
    /// Loads what save_with_memory() wrote. With LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY the sequence goes back to the rows
    /// of the saved state, which it must still hold.
    /// @param limits as above
    /// @throws Error{invalid_state}; the sequence is then empty
    void load_with_memory(Reader & in, const BatchLimits * limits, llama_state_seq_flags flags);

    /// How rows and memory differ, for people; empty if they agree.
    [[nodiscard]] std::string disagreement() const;

  private:
    struct Range;
    /// Twins have the same positions as the sequence, and one row for each row of it that they hold.
    [[nodiscard]] bool twins_are_alike() const noexcept { return has_masks(options_.view); }
    [[nodiscard]] bool is_prompt_open() const noexcept;
    [[nodiscard]] bool in_prompt(llama_pos position) const noexcept;
    void truncate_rows(size_t n);
    void settle_prompt_end();
    void own_cells();
    [[nodiscard]] llama_pos end_of(size_t n) const;
    [[nodiscard]] size_t n_below(llama_pos end) const;
    [[nodiscard]] llama_pos twin_end() const;
    [[nodiscard]] llama_pos first_row_in_window(llama_seq_id inner, llama_pos end) const;
    [[nodiscard]] bool holds_window(llama_seq_id inner, llama_pos end) const;
    [[nodiscard]] bool twins_hold_window() const;
    [[nodiscard]] llama_pos first_own_position() const;
    template <typename Change>
    bool change_positions(llama_pos p0, llama_pos p1, Change change);
    template <typename Move, typename Change>
    void move(llama_pos p0, llama_pos p1, Move move_cells, Change change);
    void load(Reader & in, Saved saved);
    void go_back_to(Reader & in, const Saved & saved);
    void load_blob(Reader & in, llama_seq_id inner, llama_state_seq_flags flags);
    void check() const;

    Memory * memory_;
    llama_seq_id id_;
    Ids ids_;
    Options options_;
    uint32_t mask_family_;
    std::vector<llama_token> negative_prompt_;

    std::vector<Row> rows_;                // by position
    size_t n_prompt_ = 0;                  // leading rows that are prompt
    std::optional<llama_pos> prompt_end_;  // positions below are prompt, until a later row is appended
    size_t n_twin_ = 0;                    // <= rows_.size()
    size_t n_shared_ = 0;               // <= n_twin_: leading rows for which the twins share the clean stream's cells
    Draw twin_draw_;                    // of the first n_twin_ rows
    bool may_share_cells_ = false;      // with another sequence: after a copy, a row of both, a state of all
    uint32_t dropped_hesitations_ = 0;  // of rows removed before others (context shift): no draw repeats
};

}  // namespace harp::forward
