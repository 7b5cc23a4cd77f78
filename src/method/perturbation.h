// Perturbation of token embeddings by counter-based random numbers.  HARP (arXiv 2412.07282) section 3.2.
//
// A random number is a pure function of (seed, draw, family, reframing, row, coordinate). A mask therefore does not
// depend on the batch in which it is computed, on the schedule or on the order of calls, and the reframed pass can be
// cached (docs/METHOD.md).
#pragma once

#include <cstdint>
#include <span>

#include "harp/options.h"

namespace harp::method {

/// Selects the random numbers of a twin's rows.
struct Masks {
    uint64_t seed = 0;       ///< Options::seed
    uint32_t draw = 0;       ///< number of the draw in its sequence: 0, 1, 2, ... (Options::redraw)
    uint32_t family = 0;     ///< separates sequences that share a seed; any number
    uint32_t reframing = 0;  ///< < 256; 0 .. Options::reframings - 1
    uint32_t length = 1;     ///< number of rows when the draw began; only `uniform` uses it (NEFTune's L)

    bool operator==(const Masks &) const = default;
};

/// u ~ U[0,1) for each coordinate of one row (24 random bits each, Philox4x32-10).
/// @param row number of the row in its sequence
/// @param out [n_embd], n_embd < 2^26
void uniform_numbers(const Masks & masks, uint32_t row, std::span<float> out) noexcept;

/// What a perturbation does to an embedding row x: x * factors + noise + relative_noise * RMS(x).
struct RowChange {
    std::span<float> factors;         ///< [n_embd], 1 before
    std::span<float> noise;           ///< [n_embd], 0 before; empty if only factors can be applied
    std::span<float> relative_noise;  ///< the same
};

/// Whether a kind needs RowChange's noise.
[[nodiscard]] constexpr bool needs_noise(Perturbation kind) noexcept {
    return kind != Perturbation::dropout;
}

/// Perturbs one row.
///
/// @param row      number of the row in its sequence
/// @param kind     see Perturbation; if it needs_noise(), `change.noise` must not be empty
/// @param strength delta, alpha or sigma; strength 0 changes nothing
void perturb(const Masks & masks, uint32_t row, Perturbation kind, float strength, const RowChange & change) noexcept;

/// Drops a whole row (sets its factors to 0) with a probability: word dropout.
void mask(const Masks & masks, uint32_t row, float probability, std::span<float> factors) noexcept;

}  // namespace harp::method
