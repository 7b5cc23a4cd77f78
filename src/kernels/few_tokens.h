// The kernels for few tokens: the outputs and tokens of a matrix multiplication in tiles (few_tokens_tile.h).
// multiply_avx2.cpp and multiply_vnni.cpp define how four inputs are multiplied and added. Each compiles this file for
// its own processors. Nothing here may be shared by the two, so everything is in an anonymous namespace.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/activations.h"
#include "kernels/few_tokens_tile.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each file that includes this needs its own copy
namespace {

/// Where the weights, tokens and outputs of a tile are.
template <class Packed>
struct Place {
    const Packed * groups;
    int64_t n_blocks;  // in a group
    const char * tokens;
    size_t token_bytes;
    float * out;
    int64_t out_stride;
    const int32_t * rows;  // the row of `out` for each token

    [[nodiscard]] float * out_of(int64_t token) const {
        return out + (rows == nullptr ? token : rows[token]) * out_stride;
    }
    /// Moves on by `n` tokens.
    void skip(int64_t n) {
        tokens += static_cast<size_t>(n) * token_bytes;
        if (rows == nullptr) {
            out += n * out_stride;
        } else {
            rows += n;
        }
    }
};

/// Multiplies a tile.
/// @param row        the first row in the first group; 0 if the tile has whole groups
/// @param n_outputs  outputs that exist
template <class Isa, class Packed, size_t REGISTERS, size_t TOKENS>
HARP_FLATTEN void multiply_tile(const Place<Packed> & place, size_t row, size_t n_outputs) {
    Tile<Isa, Packed, REGISTERS, TOKENS> tile(place.groups, row, place.n_blocks, place.tokens, place.token_bytes);
    for (int64_t i = 0; i < place.n_blocks; ++i) tile.add(i);
    HARP_UNROLLED for (size_t n = 0; n < TOKENS; ++n) {
        float * out = place.out_of(static_cast<int64_t>(n));
        HARP_UNROLLED for (size_t r = 0; r < REGISTERS; ++r) {
            const auto & sum = tile.sum(n, r);
            if (n_outputs >= (r + 1) * Isa::WIDTH) {
                std::memcpy(out + r * Isa::WIDTH, &sum, sizeof(sum));
            } else if (n_outputs > r * Isa::WIDTH) {  // half of the last group
                std::memcpy(out + r * Isa::WIDTH, &sum, LEAST_ROWS * sizeof(float));
            }
        }
    }
}

template <class Isa, class Packed, size_t REGISTERS, size_t... N>
void multiply_tile_of(const Place<Packed> & place, size_t row, size_t n_outputs, int64_t n_tokens,
                      std::index_sequence<N...> /*numbers of tokens less one*/) {
    using Function = void (*)(const Place<Packed> &, size_t, size_t);
    static constexpr Function BY_TOKENS[] = {multiply_tile<Isa, Packed, REGISTERS, N + 1>...};
    BY_TOKENS[n_tokens - 1](place, row, n_outputs);
}

/// Multiplies all tokens, in parts as few and as even as possible. @tparam TOKENS the most in a part
template <class Isa, class Packed, size_t REGISTERS, size_t TOKENS>
void multiply_outputs(Place<Packed> place, size_t row, size_t n_outputs, int64_t n_tokens) {
    constexpr auto MOST = static_cast<int64_t>(TOKENS);
    for (int64_t n_parts = (n_tokens + MOST - 1) / MOST; n_parts > 0; --n_parts) {
        const int64_t n = (n_tokens + n_parts - 1) / n_parts;
        multiply_tile_of<Isa, Packed, REGISTERS>(place, row, n_outputs, n, std::make_index_sequence<TOKENS>());
        n_tokens -= n;
        place.skip(n);
    }
}

template <class Isa, class Packed>
void multiply(const Operands & operands) noexcept {
    constexpr size_t REGISTERS = Isa::template REGISTERS<Packed>;
    Place<Packed> place{static_cast<const Packed *>(operands.groups),
                        operands.n_inputs / Packed::INPUTS,
                        static_cast<const char *>(operands.tokens),
                        token_bytes(Packed::TYPE, operands.n_inputs),
                        operands.out,
                        operands.out_stride,
                        operands.rows};
    constexpr size_t WIDE = REGISTERS * Isa::WIDTH;
    constexpr size_t WIDE_TOKENS = Isa::template TOKENS<Packed, REGISTERS>;
    // outputs left at the end are too few to be worth tiles of their own for each number of tokens: they take long to compile
    constexpr size_t NARROW_TOKENS = Isa::ALWAYS_WIDE ? 1 : Isa::template TOKENS<Packed, 1>;
    // tokens that do not fit take several parts, in tiles of the kind that holds more sums
    const auto n_tokens = static_cast<size_t>(operands.n_tokens);
    const bool may_be_wide =
        n_tokens <= WIDE_TOKENS || (n_tokens > NARROW_TOKENS && REGISTERS * WIDE_TOKENS > NARROW_TOKENS);
    const auto n_outputs = static_cast<size_t>(operands.n_outputs);
    for (size_t output = 0, n = 0; output < n_outputs; output += n) {
        const size_t n_left = n_outputs - output, row = output % GROUP;
        place.groups =
            static_cast<const Packed *>(operands.groups) + static_cast<int64_t>(output / GROUP) * place.n_blocks;
        place.out = operands.out + output;
        if (may_be_wide && n_left > WIDE - Isa::WIDTH) {
            n = WIDE;
            multiply_outputs<Isa, Packed, REGISTERS, WIDE_TOKENS>(place, row, std::min(n, n_left), operands.n_tokens);
        } else {
            n = Isa::WIDTH;
            multiply_outputs<Isa, Packed, 1, NARROW_TOKENS>(place, row, std::min(n, n_left), operands.n_tokens);
        }
    }
}

template <class Isa>
Kernel kernel_with(ggml_type weights) {
    return {tokens_bytes, [](int64_t) noexcept -> size_t { return 0; }, quantize_token,
            visit_packed(weights, []<class Packed>(Type<Packed>) { return multiply<Isa, Packed>; })};
}

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
