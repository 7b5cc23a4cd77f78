// A tile of the kernels for few tokens (few_tokens.h): a few registers of outputs for as many tokens as registers can hold
// sums for. Weights are unpacked once for all tokens and multiplied as small integers. A block of 32 inputs is processed
// in steps of four:
//
//     weights      [w0 w1 w2 w3] of output r in lane r     uint8, unpacked once for all tokens
//     activations  [a0 a1 a2 a3] in every lane             int8, one load with broadcast
//     sum         += w0 a0 + w1 a1 + w2 a2 + w3 a3          in lane r, in a register, for each token
//
// and once per block sums are converted, multiplied with the scales and added.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/activations.h"
#include "kernels/packed_weights.h"
#include "kernels/unpack.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each file that includes this needs its own copy
namespace {

// What the class of an instruction set defines:
//
//     GROUPS                 groups of 8 outputs side by side in a register
//     MOST_BITS              the most bits of a weight that it multiplies at once
//     REGISTERS<Packed>      the most registers of outputs of a tile, which share loads of activations; otherwise one
//     ALWAYS_WIDE<Packed>    whether all tiles have REGISTERS; otherwise those for more tokens than fit beside them have one
//     TOKENS<Packed, n>      the most tokens of a tile with n registers of outputs
//     steps_together(bits)   how many steps one sum can hold, with weights of so many bits
//     add_step(sum, weights, activations)   sum plus the products of a step
//     start(so_far)          a sum before its first step
//     total(sum, scale, so_far)   so_far, an integer for each output, plus the sum, times a scale if that costs nothing
//                            extra. A sum in int32 begins with so_far; others begin with 0
//     one()                  a scale of one
//     HAS_SCALES             whether other scales are possible; then also:
//     pairs(bytes)           the pairs of bytes of each output, for the next two functions
//     scale(pairs, which)    the first or second byte of each pair as a scale
//     add_pairs(sum, pairs, two)   sum plus the products of each pair with two int16
//     in_register(value)     the value, forced into a register here; otherwise GCC computes the products of many steps
//                            ahead and spills them

/// Weights come from memory in one long stream, and are prefetched this many bytes ahead. The processor's own
/// prefetchers stop at the ends of pages, which is not enough.
constexpr size_t AHEAD = 4096;

/// Prefetches what is AHEAD bytes after part `part` of `n_parts` of the blocks.
template <class Packed, size_t GROUPS>
void prefetch(const Blocks<Packed, GROUPS> & blocks, size_t part, size_t n_parts) {
    const size_t bytes = sizeof(Packed) / n_parts;
    const char * ahead = reinterpret_cast<const char *>(&blocks.first) + AHEAD + part * bytes;
    for (size_t group = 0; group < GROUPS; ++group, ahead += blocks.next) {
        for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    }
}

/// A few registers of outputs for a few tokens: the operands, and the sums so far.
template <class Isa, class Packed, size_t REGISTERS, size_t TOKENS>
class Tile {
  public:
    /// @param groups  the tile's first group
    /// @param next    bytes from one group to the next
    Tile(const Packed * groups, ptrdiff_t next, const TokenLayout & layout, const char * tokens)
        : groups_(groups), next_(next) {
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            activations_[n] = view(layout, tokens + n * layout.bytes);
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                sums_[n][r] = Number{};
            }
        }
    }

    /// Adds block `i` of the groups. Within a block activations have one scale.
    void add(int64_t i) {
        Parts parts;
        for_each_32_inputs<Packed>([&](size_t j) {
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                prefetch(blocks(i, r), j, Packed::INPUTS / BLOCK);
            }
            if constexpr (INTEGERS) {
                if (Packed::SCALES == 2 || j % 2 == 0) add_constants(i, j, parts);
            }
            HARP_UNROLLED for (size_t half = 0; half < Packed::SCALES; ++half) {
                if constexpr (INTEGERS) {
                    add_scaled(i, j, half, parts);
                } else {
                    add_numbers(i, j, half, parts);
                }
            }
        });
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                const float d = activations_[n].d[i];
                if constexpr (INTEGERS) {
                    const Line<GROUPS> of = super_line(blocks(i, r));
                    sums_[n][r] += __builtin_convertvector(parts.integers[n][r], Number) * (of.scale * d);
                    sums_[n][r] += __builtin_convertvector(parts.constants[n][r], Number) * (of.offset * d);
                } else {
                    sums_[n][r] += parts.numbers[n][r] * d;
                }
            }
        }
    }

    [[nodiscard]] const auto & sum(size_t token, size_t at) const { return sums_[token][at]; }

  private:
    static constexpr size_t GROUPS = Isa::GROUPS;
    static constexpr size_t N_STEPS = STEPS / Packed::SCALES;  // steps that share a scale
    using Number = Floats<GROUPS>;
    using Word = Words<GROUPS>;
    using Integer = Integers<GROUPS>;
    using Scale = decltype(Isa::one());
    using Products = Integer[TOKENS][REGISTERS];

    /// Whether products are multiplied with the block's scales as integers, before conversion to float.
    static constexpr bool INTEGERS = Isa::HAS_SCALES && Packed::INPUTS == SUPER_BLOCK && Packed::BITS <= Isa::MOST_BITS;

    /// Sums over a block's inputs, before the activations' scale. With INTEGERS: the sums of the weights, and the sums
    /// that the super-block's offset is multiplied with.
    struct Parts {
        Number numbers[TOKENS][REGISTERS] = {};
        Products integers = {}, constants = {};
    };

    [[nodiscard]] Blocks<Packed, GROUPS> blocks(int64_t i, size_t at) const {
        const auto * first = reinterpret_cast<const char *>(groups_) + static_cast<ptrdiff_t>(at * GROUPS) * next_;
        return {reinterpret_cast<const Packed *>(first)[i], next_};
    }

    /// Index, among the scales of all inputs, of the scale of half `half` of block `j` of 32.
    static size_t scale_of(int64_t i, size_t j, size_t half) {
        return (static_cast<size_t>(i) * (Packed::INPUTS / BLOCK) + j) * Packed::SCALES + half;
    }

    /// With INTEGERS: adds the inputs of block `j` of 32 that share a scale.
    void add_scaled(int64_t i, size_t j, size_t half, Parts & parts) const {
        Scale scales[REGISTERS];
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            scales[r] = Isa::scale(Isa::pairs(pairs(blocks(i, r).first, j).scales), which_of_pair<Packed>(j, half));
        }
        add_products<Packed::BITS>(scale_of(i, j, half) * N_STEPS * STEP, scales, parts.integers,
                                   [&](size_t r, size_t t) { return step(blocks(i, r), j, half * N_STEPS + t); });
    }

    /// Without INTEGERS: the same, in float.
    void add_numbers(int64_t i, size_t j, size_t half, Parts & parts) const {
        const size_t scale = scale_of(i, j, half);
        const size_t at = scale * N_STEPS * STEP;
        Products products = {};
        const auto add_centres = [&] {
            if constexpr (Packed::CONSTANT != 0) {
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                        products[n][r] += activations_[n].centres[scale];
                    }
                }
            }
        };
        Scale ones[REGISTERS];
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            ones[r] = Isa::one();
        }
        if constexpr (Packed::BITS <= Isa::MOST_BITS) {
            add_centres();
            add_products<Packed::BITS>(at, ones, products,
                                       [&](size_t r, size_t t) { return step(blocks(i, r), j, half * N_STEPS + t); });
        } else {
            add_products<4>(at, ones, products,
                            [&](size_t r, size_t t) { return high_step(blocks(i, r), j, half * N_STEPS + t); });
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                    products[n][r] = products[n][r] << 4;
                }
            }
            add_centres();
            add_products<4>(at, ones, products,
                            [&](size_t r, size_t t) { return low_step(blocks(i, r), j, half * N_STEPS + t); });
        }
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            const Line<GROUPS> of = line(blocks(i, r), j, half);
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                const Number product = __builtin_convertvector(products[n][r], Number);
                if constexpr (Packed::CONSTANT == 0) parts.numbers[n][r] += of.offset * activations_[n].sums[scale];
                parts.numbers[n][r] += product * of.scale;
            }
        }
    }

    /// Adds the sums for the offsets of block `j` and, if they are in one pair, of the next block.
    void add_constants(int64_t i, size_t j, Parts & parts) const {
        const size_t first = scale_of(i, j, 0);
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            const auto offsets = Isa::pairs(pairs(blocks(i, r).first, j).offsets);
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                parts.constants[n][r] =
                    Isa::add_pairs(parts.constants[n][r], offsets, in_every_lane(activations_[n].short_sums + first));
            }
        }
    }

    /// Adds the products of N_STEPS steps to `products`.
    ///
    /// @param at      index of the first of a token's activations
    /// @param scales  for each register, the scale of the products
    /// @param unpack  (register, step) -> weights below 2^BITS
    template <int BITS, class Unpack>
    void add_products(size_t at, const Scale (&scales)[REGISTERS], Products & products, const Unpack & unpack) const {
        constexpr size_t TOGETHER = Isa::steps_together(BITS);
        if constexpr (TOGETHER >= N_STEPS) {
            add_step_by_step(at, scales, products, unpack);
        } else {
            add_token_by_token<TOGETHER>(at, scales, products, unpack);
        }
    }

    /// If one sum holds all steps: step by step, with the sums of all tokens in registers.
    template <class Unpack>
    void add_step_by_step(size_t at, const Scale (&scales)[REGISTERS], Products & products,
                          const Unpack & unpack) const {
        Word sums[TOKENS][REGISTERS];
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                sums[n][r] = Isa::start(products[n][r]);
            }
        }
        HARP_UNROLLED for (size_t t = 0; t < N_STEPS; ++t) {
            Word weights[REGISTERS];
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                weights[r] = unpack(r, t);
            }
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                add_step(weights, activations_[n].q + at + t * STEP, sums[n]);
            }
        }
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                products[n][r] = Isa::total(sums[n][r], scales[r], products[n][r]);
            }
        }
    }

    /// If a sum holds only TOGETHER steps: token by token, with the weights of four steps in registers.
    template <size_t TOGETHER, class Unpack>
    void add_token_by_token(size_t at, const Scale (&scales)[REGISTERS], Products & products,
                            const Unpack & unpack) const {
        constexpr size_t SPAN = 4;
        static_assert(N_STEPS % SPAN == 0 && SPAN % TOGETHER == 0);
        HARP_UNROLLED for (size_t span = 0; span < N_STEPS / SPAN; ++span) {
            Word weights[SPAN][REGISTERS];
            HARP_UNROLLED for (size_t t = 0; t < SPAN; ++t) {
                HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                    weights[t][r] = Isa::in_register(unpack(r, span * SPAN + t));
                }
            }
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                const int8_t * activations = activations_[n].q + at + span * SPAN * STEP;
                Integer of_span[REGISTERS] = {};
                HARP_UNROLLED for (size_t part = 0; part < SPAN / TOGETHER; ++part) {
                    Word sums[REGISTERS] = {};
                    HARP_UNROLLED for (size_t t = part * TOGETHER; t < (part + 1) * TOGETHER; ++t) {
                        add_step(weights[t], activations + t * STEP, sums);
                    }
                    HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                        of_span[r] = Isa::total(sums[r], scales[r], of_span[r]);
                    }
                }
                HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                    products[n][r] = Isa::in_register(products[n][r] + of_span[r]);
                }
            }
        }
    }

    /// Adds one step's products for one token to its sums.
    static void add_step(const Word (&weights)[REGISTERS], const int8_t * activations, Word (&sums)[REGISTERS]) {
        const Word four = in_every_lane(activations);
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            sums[r] = Isa::in_register(Isa::add_step(sums[r], weights[r], four));
        }
    }

    static Word in_every_lane(const void * four_bytes) {
        uint32_t word = 0;
        std::memcpy(&word, four_bytes, sizeof(word));
        return Word{} + word;
    }

    const Packed * groups_;
    ptrdiff_t next_;
    Activations activations_[TOKENS];
    Number sums_[TOKENS][REGISTERS];
};

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
