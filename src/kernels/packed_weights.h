// Weights of 4 to 8 bits in the order in which the kernels for few tokens read them.
//
// Sixteen rows of the weight matrix (sixteen outputs) are side by side. A step is four consecutive inputs of each:
//
//     step t:  | row 0: 4t 4t+1 4t+2 4t+3 | row 1: 4t .. 4t+3 | ... | row 15: 4t .. 4t+3 |    64 bytes
//
// With the step's four activations in every lane, one multiply-add then adds to the sums of eight outputs, and nothing
// has to be summed across lanes. Low nibbles hold one step, high nibbles another; bits above the fourth are in separate
// planes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace harp::kernels {

inline constexpr int GROUP = 16;         // rows side by side
inline constexpr int LEAST_ROWS = 8;     // a matrix has a multiple of so many rows; the last group may be half empty
inline constexpr int STEP = 4;           // inputs that one lane holds
inline constexpr int BLOCK = 32;         // inputs that share a scale
inline constexpr int SUPER_BLOCK = 256;  // inputs of a K format's block
inline constexpr int STEPS = BLOCK / STEP;
inline constexpr int PAIRS = SUPER_BLOCK / (2 * BLOCK);  // pairs of blocks in a super-block, whose nibbles share bytes

// Each structure gives its ggml type, the bits of a weight, the inputs of a block, the number of scales for 32 inputs,
// and the constant c of formats with x = d * (q - c); otherwise 0.

/// x = d * (q - 8). Steps 0..3 in the low nibbles, 4..7 in the high ones.
struct PackedQ4_0 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q4_0;
    static constexpr int BITS = 4;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 8;

    uint16_t d[GROUP];  // float16
    uint8_t q[STEPS / 2][GROUP][STEP];
};

/// x = d * q + m
struct PackedQ4_1 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q4_1;
    static constexpr int BITS = 4;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 0;

    uint16_t d[GROUP];
    uint16_t m[GROUP];
    uint8_t q[STEPS / 2][GROUP][STEP];
};

/// x = d * (q - 16). Q4_0 with a fifth bit: bit t of `high` belongs to step t.
struct PackedQ5_0 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q5_0;
    static constexpr int BITS = 5;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 16;

    PackedQ4_0 low;
    uint8_t high[GROUP][STEP];
};

/// x = d * q + m
struct PackedQ5_1 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q5_1;
    static constexpr int BITS = 5;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 0;

    PackedQ4_1 low;
    uint8_t high[GROUP][STEP];
};

/// x = d * (q - 128). Both the low and the high nibbles of q are stored as in Q4_0.
struct PackedQ8_0 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q8_0;
    static constexpr int BITS = 8;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 128;

    PackedQ4_0 low;
    uint8_t high[STEPS / 2][GROUP][STEP];
};

/// x = d * scale * q - dmin * min, with scale and min for a block of 32. Of a pair of blocks the first is in the low
/// nibbles.
struct PackedQ4_K {
    static constexpr ggml_type TYPE = GGML_TYPE_Q4_K;
    static constexpr int BITS = 4;
    static constexpr int INPUTS = SUPER_BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 0;

    uint16_t d[GROUP];
    uint16_t dmin[GROUP];
    uint8_t scales[PAIRS][GROUP][2];
    uint8_t mins[PAIRS][GROUP][2];
    uint8_t q[PAIRS][STEPS][GROUP][STEP];
};

/// Q4_K with a fifth bit: bit t of `high` belongs to step t.
struct PackedQ5_K {
    static constexpr ggml_type TYPE = GGML_TYPE_Q5_K;
    static constexpr int BITS = 5;
    static constexpr int INPUTS = SUPER_BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 0;

    PackedQ4_K low;
    uint8_t high[2 * PAIRS][GROUP][STEP];
};

/// x = d * scale * (q - 32), with a scale for 16 inputs. `high[u]` has two more bits each for steps 4u..4u+3.
struct PackedQ6_K {
    static constexpr ggml_type TYPE = GGML_TYPE_Q6_K;
    static constexpr int BITS = 6;
    static constexpr int INPUTS = SUPER_BLOCK;
    static constexpr int SCALES = 2;
    static constexpr int CONSTANT = 0;

    uint16_t d[GROUP];
    int8_t scales[2 * PAIRS][GROUP][2];
    uint8_t q[PAIRS][STEPS][GROUP][STEP];
    uint8_t high[2 * PAIRS][2][GROUP][STEP];
};

/// x = d * (value - 128), where IQ4_VALUES maps a nibble to its value. Nibbles as in Q4_0.
struct PackedIQ4_NL {
    static constexpr ggml_type TYPE = GGML_TYPE_IQ4_NL;
    static constexpr int BITS = 8;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 128;

    PackedQ4_0 nibbles;
};

/// x = d * scale * (value - 128), with a scale for a block of 32. Nibbles as in Q4_0.
struct PackedIQ4_XS {
    static constexpr ggml_type TYPE = GGML_TYPE_IQ4_XS;
    static constexpr int BITS = 8;
    static constexpr int INPUTS = SUPER_BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 0;

    uint16_t d[GROUP];
    int8_t scales[PAIRS][GROUP][2];
    uint8_t q[2 * PAIRS][STEPS / 2][GROUP][STEP];
};

/// x = 2^(e - 128) * (value - 12), where MXFP4_VALUES maps a nibble to its value. Nibbles as in Q4_0.
struct PackedMXFP4 {
    static constexpr ggml_type TYPE = GGML_TYPE_MXFP4;
    static constexpr int BITS = 5;
    static constexpr int INPUTS = BLOCK;
    static constexpr int SCALES = 1;
    static constexpr int CONSTANT = 12;

    uint8_t e[GROUP];
    uint8_t q[STEPS / 2][GROUP][STEP];
};

template <class Packed>
struct Type {};

/// Calls `visit` with Type<...> of the structure for a weight type. Without a structure for it, returns a zero value.
template <class Visit>
auto visit_packed(ggml_type type, const Visit & visit) -> decltype(visit(Type<PackedQ4_0>{})) {
    switch (type) {
        case GGML_TYPE_Q4_0: return visit(Type<PackedQ4_0>{});
        case GGML_TYPE_Q4_1: return visit(Type<PackedQ4_1>{});
        case GGML_TYPE_Q5_0: return visit(Type<PackedQ5_0>{});
        case GGML_TYPE_Q5_1: return visit(Type<PackedQ5_1>{});
        case GGML_TYPE_Q8_0: return visit(Type<PackedQ8_0>{});
        case GGML_TYPE_Q4_K: return visit(Type<PackedQ4_K>{});
        case GGML_TYPE_Q5_K: return visit(Type<PackedQ5_K>{});
        case GGML_TYPE_Q6_K: return visit(Type<PackedQ6_K>{});
        case GGML_TYPE_IQ4_NL: return visit(Type<PackedIQ4_NL>{});
        case GGML_TYPE_IQ4_XS: return visit(Type<PackedIQ4_XS>{});
        case GGML_TYPE_MXFP4: return visit(Type<PackedMXFP4>{});
        default: return {};
    }
}

/// Whether a matrix can be packed: its type has a structure here, and it has a multiple of LEAST_ROWS outputs.
[[nodiscard]] bool can_pack(ggml_type type, int64_t n_inputs, int64_t n_outputs) noexcept;

/// Groups of a matrix.
[[nodiscard]] inline int64_t groups_of(int64_t n_outputs) noexcept {
    return (n_outputs + GROUP - 1) / GROUP;
}

/// Bytes of a packed group.
[[nodiscard]] size_t group_bytes(ggml_type type, int64_t n_inputs) noexcept;

/// Packs a matrix from ggml's layout, [n_outputs][n_inputs]. `packed` has groups_of(n_outputs) * group_bytes() bytes.
void pack(ggml_type type, const void * rows, int64_t n_inputs, int64_t n_outputs, void * packed) noexcept;

}  // namespace harp::kernels
