#include "kernels/packed_weights.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <type_traits>

#define GGML_COMMON_DECL_C  // ggml's declarations for C: structures inside unions have no names
#include "ggml-common.h"

namespace harp::kernels {

namespace {

/// Scale or min number `j`; twelve bytes hold eight of each, with 6 bits (ggml-quants.c, get_scale_min_k4).
uint8_t scale_of(const uint8_t (&bytes)[K_SCALE_SIZE], int j) {
    return static_cast<uint8_t>(j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4);
}

uint8_t min_of(const uint8_t (&bytes)[K_SCALE_SIZE], int j) {
    return static_cast<uint8_t>(j < 4 ? bytes[j + 4] & 63 : bytes[j + 4] >> 4 | (bytes[j] >> 6) << 4);
}

/// In all nibble formats but Q6_K, byte i of ggml's nibbles holds the same two weights as a byte of ours.
template <size_t N_STEPS>
void interleave(const uint8_t * bytes, int row, uint8_t (&q)[N_STEPS][GROUP][STEP]) {
    for (size_t t = 0; t < N_STEPS; ++t) std::memcpy(q[t][row], bytes + t * STEP, STEP);
}

void pack_row(const block_q4_0 & block, int row, PackedQ4_0 & packed) {
    packed.d[row] = block.d;
    interleave(block.qs, row, packed.q);
}

void pack_row(const block_q4_1 & block, int row, PackedQ4_1 & packed) {
    packed.d[row] = block.d;
    packed.m[row] = block.m;
    interleave(block.qs, row, packed.q);
}

/// Packs the fifth bits of Q5_0 and Q5_1.
void pack_high_bits(const uint8_t (&bits)[BLOCK / 8], int row, uint8_t (&high)[GROUP][STEP]) {
    for (int b = 0; b < STEP; ++b) {
        unsigned plane = 0;
        for (int t = 0; t < STEPS; ++t) {
            const int i = t * STEP + b;
            plane |= (bits[i / 8] >> (i % 8) & 1U) << t;
        }
        high[row][b] = static_cast<uint8_t>(plane);
    }
}

void pack_row(const block_q5_0 & block, int row, PackedQ5_0 & packed) {
    packed.low.d[row] = block.d;
    interleave(block.qs, row, packed.low.q);
    pack_high_bits(block.qh, row, packed.high);
}

void pack_row(const block_q5_1 & block, int row, PackedQ5_1 & packed) {
    packed.low.d[row] = block.d;
    packed.low.m[row] = block.m;
    interleave(block.qs, row, packed.low.q);
    pack_high_bits(block.qh, row, packed.high);
}

void pack_row(const block_q8_0 & block, int row, PackedQ8_0 & packed) {
    packed.low.d[row] = block.d;
    for (int i = 0; i < BLOCK / 2; ++i) {
        const auto first = static_cast<unsigned>(block.qs[i] + 128);
        const auto second = static_cast<unsigned>(block.qs[i + BLOCK / 2] + 128);
        packed.low.q[i / STEP][row][i % STEP] = static_cast<uint8_t>((first & 15U) | (second & 15U) << 4);
        packed.high[i / STEP][row][i % STEP] = static_cast<uint8_t>(first >> 4 | (second >> 4) << 4);
    }
}

/// Packs what Q4_K and Q5_K have in common.
template <class Block>
void pack_4_bits(const Block & block, int row, PackedQ4_K & packed) {
    packed.d[row] = block.d;
    packed.dmin[row] = block.dmin;
    for (int j = 0; j < 2 * PAIRS; ++j) {
        packed.scales[j / 2][row][j % 2] = scale_of(block.scales, j);
        packed.mins[j / 2][row][j % 2] = min_of(block.scales, j);
    }
    for (int pair = 0; pair < PAIRS; ++pair) interleave(block.qs + pair * BLOCK, row, packed.q[pair]);
}

void pack_row(const block_q4_K & block, int row, PackedQ4_K & packed) {
    pack_4_bits(block, row, packed);
}

void pack_row(const block_q5_K & block, int row, PackedQ5_K & packed) {
    pack_4_bits(block, row, packed.low);
    for (int j = 0; j < 2 * PAIRS; ++j) {
        for (int b = 0; b < STEP; ++b) {
            unsigned plane = 0;
            for (int t = 0; t < STEPS; ++t) plane |= (block.qh[t * STEP + b] >> j & 1U) << t;
            packed.high[j][row][b] = static_cast<uint8_t>(plane);
        }
    }
}

/// The values, 0..63, of a Q6_K block (ggml-quants.c, dequantize_row_q6_K). In loops that compilers turn into wide
/// instructions: one value at a time, less than 0.2 GB were packed in a second.
void unpack_q6(const block_q6_K & block, uint8_t (&q)[SUPER_BLOCK]) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *low = block.ql + half * 64, *high = block.qh + half * 32;
        for (int quarter = 0; quarter < 4; ++quarter) {
            const uint8_t * nibbles = low + quarter % 2 * 32;
            uint8_t * to = q + half * 128 + quarter * 32;
            for (int l = 0; l < 32; ++l) {
                to[l] = static_cast<uint8_t>((nibbles[l] >> quarter / 2 * 4 & 15) | (high[l] >> quarter * 2 & 3) << 4);
            }
        }
    }
}

void pack_row(const block_q6_K & block, int row, PackedQ6_K & packed) {
    packed.d[row] = block.d;
    uint8_t q[SUPER_BLOCK];
    unpack_q6(block, q);
    for (int pair = 0; pair < PAIRS; ++pair) {
        const uint8_t *first = q + pair * 2 * BLOCK, *second = first + BLOCK;
        uint8_t nibbles[BLOCK];
        for (int i = 0; i < BLOCK; ++i) nibbles[i] = static_cast<uint8_t>((first[i] & 15) | (second[i] & 15) << 4);
        interleave(nibbles, row, packed.q[pair]);
    }
    for (int j = 0; j < 2 * PAIRS; ++j) {
        for (int half = 0; half < 2; ++half) {
            packed.scales[j][row][half] = block.scales[2 * j + half];
            const uint8_t * of = q + j * BLOCK + half * BLOCK / 2;
            for (int b = 0; b < STEP; ++b) {
                unsigned high = 0;
                for (int t = 0; t < STEPS / 2; ++t) high |= static_cast<unsigned>(of[t * STEP + b] >> 4) << (2 * t);
                packed.high[j][half][row][b] = static_cast<uint8_t>(high);
            }
        }
    }
}

void pack_row(const block_iq4_nl & block, int row, PackedIQ4_NL & packed) {
    packed.nibbles.d[row] = block.d;
    interleave(block.qs, row, packed.nibbles.q);
}

void pack_row(const block_iq4_xs & block, int row, PackedIQ4_XS & packed) {
    packed.d[row] = block.d;
    for (int j = 0; j < 2 * PAIRS; ++j) {
        const int low = block.scales_l[j / 2] >> (j % 2 * 4) & 15, high = block.scales_h >> (2 * j) & 3;
        packed.scales[j / 2][row][j % 2] = static_cast<int8_t>((low | high << 4) - 32);
        interleave(block.qs + j * (BLOCK / 2), row, packed.q[j]);
    }
}

void pack_row(const block_mxfp4 & block, int row, PackedMXFP4 & packed) {
    packed.e[row] = block.e;
    interleave(block.qs, row, packed.q);
}

/// ggml's structure for the type of a packed structure.
template <class Packed>
struct Ggmls;
template <>
struct Ggmls<PackedQ4_0> : std::type_identity<block_q4_0> {};
template <>
struct Ggmls<PackedQ4_1> : std::type_identity<block_q4_1> {};
template <>
struct Ggmls<PackedQ5_0> : std::type_identity<block_q5_0> {};
template <>
struct Ggmls<PackedQ5_1> : std::type_identity<block_q5_1> {};
template <>
struct Ggmls<PackedQ8_0> : std::type_identity<block_q8_0> {};
template <>
struct Ggmls<PackedQ4_K> : std::type_identity<block_q4_K> {};
template <>
struct Ggmls<PackedQ5_K> : std::type_identity<block_q5_K> {};
template <>
struct Ggmls<PackedQ6_K> : std::type_identity<block_q6_K> {};
template <>
struct Ggmls<PackedIQ4_NL> : std::type_identity<block_iq4_nl> {};
template <>
struct Ggmls<PackedIQ4_XS> : std::type_identity<block_iq4_xs> {};
template <>
struct Ggmls<PackedMXFP4> : std::type_identity<block_mxfp4> {};

template <class Packed>
void pack_rows(const void * rows, int64_t n_blocks, int64_t n_outputs, void * packed) {
    const auto * from = static_cast<const typename Ggmls<Packed>::type *>(rows);
    auto * to = static_cast<Packed *>(packed);
    for (int64_t first = 0; first < n_outputs; first += GROUP) {
        const auto n_rows = static_cast<int>(std::min<int64_t>(GROUP, n_outputs - first));
        for (int64_t block = 0; block < n_blocks; ++block, ++to) {
            if (n_rows < GROUP) *to = {};
            for (int row = 0; row < n_rows; ++row) pack_row(from[(first + row) * n_blocks + block], row, *to);
        }
    }
}

}  // namespace

bool can_pack(ggml_type type, int64_t n_inputs, int64_t n_outputs) noexcept {
    return n_outputs % LEAST_ROWS == 0 && n_outputs > 0 && group_bytes(type, n_inputs) > 0 &&
           n_inputs % ggml_blck_size(type) == 0;
}

size_t group_bytes(ggml_type type, int64_t n_inputs) noexcept {
    const size_t bytes = visit_packed(type, []<class Packed>(Type<Packed>) { return sizeof(Packed); });
    return static_cast<size_t>(n_inputs / ggml_blck_size(type)) * bytes;
}

void pack(ggml_type type, const void * rows, int64_t n_inputs, int64_t n_outputs, void * packed) noexcept {
    assert(can_pack(type, n_inputs, n_outputs));
    const auto pack_all = visit_packed(type, []<class Packed>(Type<Packed>) { return pack_rows<Packed>; });
    pack_all(rows, n_inputs / ggml_blck_size(type), n_outputs, packed);
}

}  // namespace harp::kernels
