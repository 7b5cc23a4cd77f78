// Mixing of the vanilla and the reframed logits.  HARP (arXiv 2412.07282) section 3.3.
#pragma once

#include <span>

namespace harp::method {

/// out_i = beta * vanilla_i + (1 - beta) * reframed_i, each operation rounded to float32 (no fused multiply-add),
/// as the authors' code does it. beta = 1 gives `vanilla` bit for bit,
/// beta = 0 `reframed`.
///
/// @param vanilla  logits of the clean pass, [n_vocab]
/// @param reframed logits of the perturbed pass, [n_vocab]
/// @param beta     share of the vanilla logits, 0..1
/// @param out      [n_vocab]; may alias `vanilla` or `reframed`
/// All spans have the same length (asserted). Cost: one pass, no allocation. Thread-safe.
void mix_logits(std::span<const float> vanilla, std::span<const float> reframed, float beta,
                std::span<float> out) noexcept;

/// Adds `logits` / `count` to `mean`: after `count` calls `mean`, zero before the first, is the mean of `count` rows.
/// With count 1 and `mean` zero the row is copied bit for bit.
void accumulate_mean(std::span<const float> logits, unsigned count, std::span<float> mean) noexcept;

}  // namespace harp::method
