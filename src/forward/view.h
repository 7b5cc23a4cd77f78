// A view: what a twin reads of its sequence, as a pure function from the sequence's rows to the twin's.
//
//   rows                    p0  p1  p2  p3 | a0  a1  a2      prompt | answer; the token after a2 is to be predicted
//
//   perturbed               p0' p1' p2' p3'  a0' a1' a2'     HARP; under Scope::generated the prompt's rows stay clean
//   masked                  p0  --  p2  p3   --  a1  a2      some embeddings are 0
//   guidance                            p3   a0  a1  a2      of the prompt only the last token
//    with negative prompt       n0  n1  n2   a0  a1  a2      other tokens and positions instead of the prompt's
//   last, 2 tokens                               a1  a2      read anew at each hesitation
//
// Otherwise rows keep their positions; rotary embeddings depend only on distances.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "forward/batch_rows.h"
#include "harp/options.h"
#include "llama.h"

namespace harp::forward {

/// A row of a sequence.
struct Row {
    llama_token token = LLAMA_TOKEN_NULL;  ///< none if the row is an embedding
    llama_pos position = 0;                ///< its current position
    uint32_t ordinal = 0;    ///< selects its masks: the row's number, which a context shift does not change
    bool hesitated = false;  ///< the step after this row hesitated
    bool is_output = false;  ///< its logits were wanted
    EmbeddingRow embedding;
};

/// A row of a twin.
struct ViewRow {
    static constexpr size_t none = std::numeric_limits<size_t>::max();

    llama_token token = LLAMA_TOKEN_NULL;
    llama_pos position = 0;
    bool is_reframed = false;  ///< perturbed or masked
    uint32_t ordinal = 0;
    EmbeddingRow embedding = {};
    size_t index = none;  ///< of the sequence's row that it predicts the successor of; none inside a negative prompt
};

/// The inputs of a view, all borrowed.
struct ViewOf {
    const Options & options;
    std::span<const Row> rows;
    size_t n_prompt = 0;             ///< leading rows that are prompt
    bool is_prompt_complete = true;  ///< no more rows will join it
    std::span<const llama_token> negative_prompt = {};

    /// Whether a second pass after row `i` reads anything other than the first pass did.
    [[nodiscard]] bool differs_at(size_t i) const noexcept;
    /// Whether row `i` is perturbed or masked.
    [[nodiscard]] bool is_reframed(size_t i) const noexcept;
    /// The rows that the twin still has to read so that it holds the view of rows 0 .. `end` - 1. It holds the view of
    /// the first `n_held` rows (0 for View::last; for View::guidance 0, or at least the prompt).
    [[nodiscard]] std::vector<ViewRow> read(size_t n_held, size_t end) const;
    /// Cells that a twin needs of its own to hold the view of rows 0 .. `end` - 1, where a prompt that stays clean is in
    /// the clean stream's.
    [[nodiscard]] size_t n_cells(size_t end) const noexcept;
    /// Position of a row in the twin minus its position in the sequence.
    [[nodiscard]] llama_pos offset() const noexcept;
    /// The first position from `begin` on at which the twin has a row, both counted in the twin's positions.
    [[nodiscard]] llama_pos first_from(llama_pos begin) const noexcept;
    /// The smallest number of rows, above 0, whose view a twin can hold.
    [[nodiscard]] size_t least() const noexcept;

  private:
    [[nodiscard]] size_t first_read(size_t n_held, size_t end) const noexcept;
};

}  // namespace harp::forward
