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
//     WIDTH                  outputs of a register: 8 or 16
//     MOST_BITS              the most bits of a weight that it multiplies at once
//     REGISTERS<Packed>      the most registers of outputs of a tile, which share loads of activations; otherwise one
//     ALWAYS_WIDE            whether all tiles have REGISTERS; otherwise those for more tokens than fit beside them may have one
//     TOKENS<Packed, n>      the most tokens of a tile with n registers of outputs
//     steps_together(bits)   how many steps one sum can hold, with weights of so many bits
//     add_step(sum, weights, activations)   sum plus the products of a step
//     start(so_far)          a sum before its first step
//     total(sum, scale, so_far)   so_far, an integer for each output, plus the sum, times a scale if that costs nothing
//                            extra. A sum in int32 begins with so_far; others begin with 0
//     one()                  a scale of one
//     HAS_SCALES             whether other scales are possible; then also:
//     scale(pairs, which)    the first or second of each pair of int16 as a scale
//     add_pairs(sum, pairs, two)   sum plus the products of each pair of int16 with two others
//     in_register(value)     the value, forced into a register here; otherwise GCC computes the products of many steps
//                            ahead and spills them
//     LOADS                  whether an instruction can load activations and add a step; then also:
//     load_and_add_step(sum, weights, activations)   add_step() with the activations at an address

/// Weights come from memory in one long stream, and are prefetched this many bytes ahead. The processor's own
/// prefetchers stop at the ends of pages, which is not enough.
constexpr size_t AHEAD = 4096;

/// Prefetches what is AHEAD bytes after part `part` of the block, of which there are PARTS. Not all at once, but some of it
/// in each of N_STEPS steps, so that memory has always something to do.
template <size_t PARTS, size_t N_STEPS, class Packed>
void prefetch(const Packed & block, size_t part, size_t step) {
    constexpr size_t LINE = 64, BYTES = sizeof(Packed) / PARTS, LINES = (BYTES + LINE - 1) / LINE;
    constexpr size_t LINES_OF_STEP = (LINES + N_STEPS - 1) / N_STEPS;
    const char * ahead = reinterpret_cast<const char *>(&block) + AHEAD + part * BYTES;
    HARP_UNROLLED for (size_t i = step * LINES_OF_STEP; i < (step + 1) * LINES_OF_STEP; ++i) {
        if (i < LINES) _mm_prefetch(ahead + i * LINE, _MM_HINT_T0);
    }
}

/// A few registers of outputs for a few tokens: the operands, and the sums so far.
template <class Isa, class Packed, size_t REGISTERS, size_t TOKENS>
class Tile {
  public:
    /// @param groups    the tile's first group
    /// @param row       the group's first row in the tile; 0 if the tile has whole groups
    /// @param n_blocks  in a group
    Tile(const Packed * groups, size_t row, int64_t n_blocks, const char * tokens, size_t token_bytes)
        : groups_(groups), row_(row), n_blocks_(n_blocks) {
        HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
            tokens_[n] = reinterpret_cast<const Activations<Packed> *>(tokens + n * token_bytes);
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                sums_[n][r] = Number{};
            }
        }
    }

    /// Adds block `i` of the groups. Within a block activations have one scale.
    void add(int64_t i) {
        Parts parts;
        if constexpr (IN_PAIRS) {
            for (size_t pair = 0; pair < PAIRS; ++pair) {
                HARP_UNROLLED for (size_t half = 0; half < Packed::SCALES; ++half) {
                    add_pair(i, pair, half, parts);
                }
            }
        } else {
            for_each_32_inputs<Packed>([&](size_t j) {
                HARP_UNROLLED for (size_t half = 0; half < Packed::SCALES; ++half) {
                    if constexpr (INTEGERS) {
                        add_scaled(i, j, half, parts);
                    } else {
                        add_numbers(i, j, half, parts);
                    }
                }
            });
        }
        if constexpr (IS_K) add_constants(i, parts);
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                Number sum = parts.numbers[n][r];
                if constexpr (IS_K) {
                    if constexpr (INTEGERS) sum = __builtin_convertvector(parts.integers[n][r], Number);
                    const Line<WIDTH> of = super_line(rows(i, r));
                    sum = sum * of.scale + __builtin_convertvector(parts.constants[n][r], Number) * of.offset;
                }
                sums_[n][r] += sum * tokens_[n][i].d;
            }
        }
    }

    [[nodiscard]] const auto & sum(size_t token, size_t at) const { return sums_[token][at]; }

  private:
    static constexpr size_t WIDTH = Isa::WIDTH;
    static constexpr size_t N_STEPS = STEPS / Packed::SCALES;  // steps that share a scale
    using Number = Floats<WIDTH>;
    using Word = Words<WIDTH>;
    using Integer = Integers<WIDTH>;
    using Scale = decltype(Isa::one());
    using Products = Integer[TOKENS][REGISTERS];

    static constexpr bool HAS_WHOLE_GROUPS = REGISTERS * WIDTH % GROUP == 0;
    /// Whether blocks are super-blocks, whose scale and offset are multiplied last.
    static constexpr bool IS_K = Packed::INPUTS == SUPER_BLOCK;
    /// Whether products are multiplied with the block's scales as integers, before conversion to float.
    static constexpr bool INTEGERS = Isa::HAS_SCALES && IS_K && Packed::BITS <= Isa::MOST_BITS;
    /// Whether two blocks whose nibbles share bytes are unpacked together.
    static constexpr bool IN_PAIRS = !Isa::HAS_SCALES && IS_K;

    /// Sums over a block's inputs, before the activations' scale. For super-blocks also before their scale, and the sums
    /// that their offset is multiplied with.
    struct Parts {
        Number numbers[TOKENS][REGISTERS] = {};
        Products integers = {}, constants = {};
    };

    /// The rows of register `at` in block `i`.
    [[nodiscard]] Rows<Packed, WIDTH> rows(int64_t i, size_t at) const {
        const auto group = static_cast<int64_t>(at * WIDTH / GROUP);
        return {groups_[group * n_blocks_ + i], HAS_WHOLE_GROUPS ? at * WIDTH % GROUP : row_};
    }

    /// Unpacks step `t` of block `j` of 32 inputs for register `r`, and prefetches what will be needed later. Of weights
    /// that take two multiplications, the high nibbles.
    [[nodiscard]] Word unpacked(int64_t i, size_t r, size_t j, size_t t) const {
        const Rows<Packed, WIDTH> of = rows(i, r);
        if (begins_group(r)) prefetch<Packed::INPUTS / BLOCK, STEPS>(of.block, j, t);
        if constexpr (Packed::BITS <= Isa::MOST_BITS) {
            return step(of, j, t);
        } else {
            return high_step(of, j, t);
        }
    }

    /// The same for blocks whose nibbles share bytes.
    [[nodiscard]] Word unpacked_of_pair(int64_t i, size_t r, size_t pair, size_t which, size_t t) const {
        const Rows<Packed, WIDTH> of = rows(i, r);
        if (begins_group(r)) prefetch<PAIRS, 2 * STEPS>(of.block, pair, 2 * t + which);
        return step_of_pair(of, pair, which, t);
    }

    static bool begins_group(size_t r) { return r * WIDTH % GROUP == 0; }

    /// With INTEGERS: adds the inputs of block `j` of 32 that share a scale.
    void add_scaled(int64_t i, size_t j, size_t half, Parts & parts) const {
        Scale scales[REGISTERS];
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            const Rows<Packed, WIDTH> of = rows(i, r);
            const Word of_blocks = load_pairs<WIDTH>(pairs(of.block, j).scales, of.first);
            scales[r] = Isa::scale(of_blocks, which_of_pair<Packed>(j, half));
        }
        add_products<Packed::BITS>(i, j, half, scales, parts.integers,
                                   [&](size_t r, size_t t) { return unpacked(i, r, j, half * N_STEPS + t); });
    }

    /// Without INTEGERS: the same, in float.
    void add_numbers(int64_t i, size_t j, size_t half, Parts & parts) const {
        Products products = {};
        const auto add_start = [&] {
            if constexpr (!IS_K) {
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                        products[n][r] += tokens_[n][i].start;
                    }
                }
            }
        };
        Scale ones[REGISTERS];
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            ones[r] = Isa::one();
        }
        if constexpr (Packed::BITS <= Isa::MOST_BITS) {
            add_start();
            add_products<Packed::BITS>(i, j, half, ones, products,
                                       [&](size_t r, size_t t) { return unpacked(i, r, j, half * N_STEPS + t); });
        } else {
            add_products<4>(i, j, half, ones, products,
                            [&](size_t r, size_t t) { return unpacked(i, r, j, half * N_STEPS + t); });
            HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                    products[n][r] = products[n][r] << 4;
                }
            }
            add_start();
            add_products<4>(i, j, half, ones, products,
                            [&](size_t r, size_t t) { return low_step(rows(i, r), j, half * N_STEPS + t); });
        }
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            if constexpr (IS_K) {
                const Number scales = block_scales(rows(i, r), j, half);
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    parts.numbers[n][r] += __builtin_convertvector(products[n][r], Number) * scales;
                }
            } else {
                const Line<WIDTH> of = line(rows(i, r), j, half);
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    parts.numbers[n][r] = without_bias(products[n][r], of.scale);
                    if constexpr (Packed::CONSTANT == 0) parts.numbers[n][r] += of.offset * tokens_[n][i].sum;
                }
            }
        }
    }

    /// With IN_PAIRS: adds the inputs of blocks 2 `pair` and 2 `pair` + 1 that share a scale.
    void add_pair(int64_t i, size_t pair, size_t half, Parts & parts) const {
        Word sums[2][TOKENS][REGISTERS] = {};
        HARP_UNROLLED for (size_t t = half * N_STEPS; t < (half + 1) * N_STEPS; ++t) {
            HARP_UNROLLED for (size_t which = 0; which < 2; ++which) {
                Word weights[REGISTERS];
                HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                    weights[r] = unpacked_of_pair(i, r, pair, which, t);
                }
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    add_step(weights, tokens_[n][i].q + (2 * pair + which) * BLOCK + t * STEP, sums[which][n]);
                }
            }
        }
        HARP_UNROLLED for (size_t which = 0; which < 2; ++which) {
            const size_t j = 2 * pair + which;
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                Number scales = block_scales(rows(i, r), j, half);
                if (which == 1 && RAISED<Packed> != 1) scales *= 1 / RAISED<Packed>;
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    parts.numbers[n][r] +=
                        __builtin_convertvector(reinterpret_cast<Integer>(sums[which][n][r]), Number) * scales;
                }
            }
        }
    }

    /// Adds the sums that the offset of super-block `i` is multiplied with.
    void add_constants(int64_t i, Parts & parts) const {
        HARP_UNROLLED for (size_t pair = 0; pair < PAIRS * Packed::SCALES; ++pair) {
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                const Rows<Packed, WIDTH> of = rows(i, r);
                const Word offsets = load_pairs<WIDTH>(pairs(of.block, pair * 2 / Packed::SCALES).offsets, of.first);
                HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
                    parts.constants[n][r] =
                        Isa::add_pairs(parts.constants[n][r], offsets, in_every_lane(tokens_[n][i].sums + 2 * pair));
                }
            }
        }
    }

    /// Adds the products of N_STEPS steps, those of half `half` of block `j` of 32, to `products`.
    ///
    /// @param scales  for each register, the scale of the products
    /// @param unpack  (register, step) -> weights below 2^BITS
    template <int BITS, class Unpack>
    void add_products(int64_t i, size_t j, size_t half, const Scale (&scales)[REGISTERS], Products & products,
                      const Unpack & unpack) const {
        constexpr size_t TOGETHER = Isa::steps_together(BITS);
        const size_t at = j * BLOCK + half * N_STEPS * STEP;
        if constexpr (TOGETHER >= N_STEPS) {
            add_step_by_step(i, at, scales, products, unpack);
        } else {
            add_token_by_token<TOGETHER>(i, at, scales, products, unpack);
        }
    }

    /// If one sum holds all steps: step by step, with the sums of all tokens in registers.
    template <class Unpack>
    void add_step_by_step(int64_t i, size_t at, const Scale (&scales)[REGISTERS], Products & products,
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
                add_step(weights, tokens_[n][i].q + at + t * STEP, sums[n]);
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
    void add_token_by_token(int64_t i, size_t at, const Scale (&scales)[REGISTERS], Products & products,
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
                const int8_t * activations = tokens_[n][i].q + at + span * SPAN * STEP;
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
        if constexpr (Isa::LOADS && REGISTERS == 1) {
            sums[0] = Isa::load_and_add_step(sums[0], weights[0], activations);
        } else {
            const Word four = in_every_lane(activations);
            HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
                sums[r] = Isa::in_register(Isa::add_step(sums[r], weights[r], four));
            }
        }
    }

    /// (biased - BIAS_BITS) * scale, rounded once.
    static Number without_bias(Integer biased, Number scale) {
        return multiply_add<WIDTH>(reinterpret_cast<Number>(biased), scale, scale * -BIAS);
    }

    static Word in_every_lane(const void * four_bytes) {
        uint32_t word = 0;
        std::memcpy(&word, four_bytes, sizeof(word));
        return Word{} + word;
    }

    const Packed * groups_;
    size_t row_;
    int64_t n_blocks_;
    const Activations<Packed> * tokens_[TOKENS];
    Number sums_[TOKENS][REGISTERS];
};

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
