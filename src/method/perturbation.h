// Perturbation of token embeddings by counter-based random numbers.  HARP (arXiv 2412.07282) section 3.2.
//
// A random number is a pure function of (seed, draw, sequence, reframing, position, coordinate): a mask never depends
// on the batch it is computed in, on the schedule or on the order of calls. That is what makes the reframed pass
// cacheable (docs/METHOD.md).
#pragma once

#include <cstdint>
#include <span>

#include "harp/options.h"

namespace harp::method {

/// Which draw of random numbers a row takes its own from.
struct Draw {
    uint64_t seed = 0;       ///< Options::seed
    uint32_t index = 0;      ///< counts the draws of a sequence: 0, 1, 2, ... (Options::redraw)
    uint32_t sequence = 0;   ///< < 2^24; tells sequences that share a seed apart
    uint32_t reframing = 0;  ///< < 256; 0 .. Options::reframings - 1
    uint32_t length = 1;     ///< sequence length when the draw began; only `uniform` uses it (NEFTune's L)

    bool operator==(const Draw &) const = default;
};

/// u ~ U[0,1) for each coordinate of one position (24 random bits each, Philox4x32-10).
/// @param out [n_embd]
void uniform_numbers(const Draw & draw, uint32_t position, std::span<float> out) noexcept;

/// Perturbs one embedding row in place.
///
/// @param row      token embedding at `position`, [n_embd]
/// @param kind     see Perturbation
/// @param strength delta, alpha or sigma; strength 0 leaves the row unchanged bit for bit
void perturb(const Draw & draw, uint32_t position, Perturbation kind, float strength, std::span<float> row) noexcept;

}  // namespace harp::method
