// What one sequence holds: its tokens, how far its reframed twins have followed, and which rows hesitated.
//
// Pure bookkeeping that mirrors the KV cache; no call into llama.cpp.
//
//   rows      t0  t1  t2  t3  t4  t5        the clean stream holds all of them
//   twin      ██  ██  ██  ██                n_twin = 4: the twins hold this prefix, under one draw of masks
//   pending                   t4  t5        decoded for the twins when a hesitation comes
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "harp/options.h"
#include "llama.h"

namespace harp::forward {

struct HistoryRow {
    llama_token token = 0;
    llama_pos position = 0;       ///< where it stands now
    llama_pos mask_position = 0;  ///< where it stood when first decoded: a context shift does not change its mask
    bool reframed = true;         ///< false: prompt under Scope::generated, stays clean in the twin
    bool hesitated = false;       ///< the step after this row hesitated
    bool is_output = false;       ///< its logits were wanted (not saved with the state)
};

/// Identifies the random numbers that the rows of a twin were perturbed with.
struct DrawId {
    uint32_t index = 0;
    uint32_t length = 1;  ///< sequence length at the hesitation that began the draw
    bool operator==(const DrawId &) const = default;
};

class TokenHistory {
  public:
    [[nodiscard]] const std::vector<HistoryRow> & rows() const noexcept { return rows_; }
    [[nodiscard]] size_t size() const noexcept { return rows_.size(); }
    [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }
    /// Position that the next token would take.
    [[nodiscard]] llama_pos next_position() const noexcept;
    /// Index of the row at `position`; the row must exist.
    [[nodiscard]] size_t index_of(llama_pos position) const;

    /// Appends a token; its position must be above all others. @param is_output the caller wants its logits
    void append(llama_token token, llama_pos position, Scope scope, bool is_output);
    /// Tokens at positions < `end` are prompt, those that are here too: as if decoded anew, their hesitations never were.
    /// @return number of leading rows that are reframed, or clean, as before: what the twins may keep
    size_t set_prompt_end(llama_pos end, Scope scope);
    /// Marks the rows as they would be had they been appended under `scope`. @return as set_prompt_end()
    size_t apply_scope(Scope scope);
    /// Whether append() would mark a token at `position` as reframed.
    [[nodiscard]] bool would_reframe(llama_pos position, Scope scope) const noexcept;
    /// Number of leading rows that stay clean in the twin.
    [[nodiscard]] size_t clean_prefix() const noexcept;

    void mark_hesitation(size_t row, bool hesitated) { rows_[row].hesitated = hesitated; }
    /// The draw that a hesitation at `row` uses: a new one after every `redraw` hesitations (0: never).
    [[nodiscard]] DrawId draw_for_hesitation(size_t row, uint32_t redraw) const;

    /// @name The memory operations of llama.cpp (same range rules: p0 < 0 is 0, p1 < 0 is infinity).
    /// @return false where the twins can no longer be a prefix of the rows: the caller must empty them and call forget_twin()
    /// @{
    void remove(llama_pos p0, llama_pos p1);
    [[nodiscard]] bool copy_from(const TokenHistory & source, llama_pos p0, llama_pos p1);
    [[nodiscard]] bool add(llama_pos p0, llama_pos p1, llama_pos delta);
    [[nodiscard]] bool divide(llama_pos p0, llama_pos p1, int divisor);
    /// @}
    void clear();
    /// Takes the rows from position `from` on back, as if they had never been appended.
    void take_back(llama_pos from);

    [[nodiscard]] size_t n_twin() const noexcept { return n_twin_; }
    [[nodiscard]] const DrawId & twin_draw() const noexcept { return twin_draw_; }
    /// The twins now hold the first `n` rows, perturbed by `draw`.
    void set_twin(size_t n, const DrawId & draw) noexcept {
        n_twin_ = n;
        n_shared_ = std::min(n_shared_, n);
        twin_draw_ = draw;
    }
    void forget_twin() noexcept { n_twin_ = n_shared_ = 0; }
    /// Leading rows that the twins hold in the very cells of the clean stream (Scope::generated, unified cache).
    [[nodiscard]] size_t n_shared() const noexcept { return n_shared_; }
    void set_shared(size_t n) noexcept { n_shared_ = n; }

    /// Everything, for saved state.
    struct Snapshot {
        std::vector<HistoryRow> rows;
        uint64_t n_twin = 0;
        DrawId twin_draw;
        uint32_t dropped_hesitations = 0;
        bool seen_output = false;
        std::optional<llama_pos> prompt_end;
    };
    [[nodiscard]] Snapshot snapshot() const;
    /// @throws Error{invalid_state} if positions do not increase or the twin is longer than the rows
    void restore(Snapshot snapshot);

  private:
    /// The rule of Scope. @param seen_output an earlier row was an output row
    [[nodiscard]] bool is_reframed(llama_pos position, Scope scope, bool seen_output) const noexcept;

    template <typename Change>
    bool change_positions(llama_pos p0, llama_pos p1, Change change);

    std::vector<HistoryRow> rows_;      // positions strictly increasing
    size_t n_twin_ = 0;                 // <= rows_.size()
    size_t n_shared_ = 0;               // <= n_twin_; not saved with the state
    DrawId twin_draw_;                  // of the first n_twin_ rows
    uint32_t dropped_hesitations_ = 0;  // of rows removed ahead of others (context shift), so that draws do not repeat
    bool seen_output_ = false;
    std::optional<llama_pos> prompt_end_;
};

}  // namespace harp::forward
