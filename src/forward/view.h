// What a twin reads of its sequence: a view, a pure function from the sequence's rows to the twin's.
//
//   rows                    p0  p1  p2  p3 | a0  a1  a2      prompt | answer; what follows a2 is to be predicted
//
//   perturbed               p0' p1' p2' p3'  a0' a1' a2'     HARP; under Scope::generated the prompt's rows stay clean
//   masked                  p0  --  p2  p3   --  a1  a2      some embeddings are 0
//   guidance                            p3   a0  a1  a2      the prompt dropped to its last token
//    with negative prompt       n0  n1  n2   a0  a1  a2      other tokens in the prompt's place, at positions of their own
//   last, 2 tokens                               a1  a2      read anew at each hesitation
//
// Otherwise rows keep their positions: with rotary embeddings only distances count.
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
    llama_token token = LLAMA_TOKEN_NULL;  ///< none if it is an embedding
    llama_pos position = 0;                ///< where it stands now
    uint32_t ordinal = 0;    ///< which masks it has: counts the rows, and does not change in a context shift
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
    size_t index = none;  ///< of the sequence's row whose successor it predicts; none inside a negative prompt
};

/// What a view is a function of. Borrows all of it.
struct ViewOf {
    const Options & options;
    std::span<const Row> rows;
    size_t n_prompt = 0;             ///< leading rows that are prompt
    bool is_prompt_complete = true;  ///< no more rows will join it
    std::span<const llama_token> negative_prompt = {};

    /// Whether a second look after row `i` sees anything else than the first did.
    [[nodiscard]] bool differs_at(size_t i) const noexcept;
    /// Whether row `i` is perturbed or masked.
    [[nodiscard]] bool is_reframed(size_t i) const noexcept;
    /// The twin's rows behind those that it holds (the view of the first `n_held` rows; View::last holds none) up to row `end` - 1.
    /// Of View::guidance `n_held` is 0 or reaches behind the prompt.
    [[nodiscard]] std::vector<ViewRow> read(size_t n_held, size_t end) const;
    /// The twin's position of a row, less the row's own.
    [[nodiscard]] llama_pos offset() const noexcept;
    /// Fewest rows whose view a twin can hold, but none.
    [[nodiscard]] size_t least() const noexcept;

  private:
    [[nodiscard]] size_t first_read(size_t n_held, size_t end) const noexcept;
};

}  // namespace harp::forward
