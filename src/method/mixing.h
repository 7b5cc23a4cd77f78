// Mixing of the vanilla and the reframed logits: the average of HARP (arXiv 2412.07282, section 3.3), and contrast
// (contrastive decoding, arXiv 2210.15097, in the form of 2309.09117; classifier-free guidance, 2306.17806).
#pragma once

#include <span>

namespace harp::method {

struct Mix {
    float beta = 0.5F;
    float plausibility = 0;  ///< 0..1, for contrast
};

/// Mixes two rows of logits.
///
///   beta <= 1   average   out_i = beta * vanilla_i + (1 - beta) * reframed_i, each operation rounded to float32 (no
///                         fused multiply-add), as in the authors' code. 1 gives `vanilla` bit for bit, 0 `reframed`
///   beta > 1    contrast  the same formula for log-probabilities. Tokens with p < plausibility * max p, by `vanilla`,
///                         keep their vanilla log-probability; so do tokens with logit -infinity in either row
///
/// @param vanilla  logits of the clean pass, [n_vocab]
/// @param reframed logits of the second pass, [n_vocab]
/// @param out      [n_vocab]; may alias `vanilla` or `reframed`. Finite where `vanilla` is
/// All spans have the same length (asserted). Cost: one pass, contrast five; no allocation. Thread-safe.
void mix_logits(std::span<const float> vanilla, std::span<const float> reframed, const Mix & mix,
                std::span<float> out) noexcept;

/// Adds `logits` / `count` to `mean`. If `mean` was zero at first, it is the mean of `count` rows after `count` calls.
/// With count 1 the row is copied bit for bit.
void accumulate_mean(std::span<const float> logits, unsigned count, std::span<float> mean) noexcept;

}  // namespace harp::method
