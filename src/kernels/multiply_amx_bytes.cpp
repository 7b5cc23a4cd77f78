// The kernel for 9 to about 50 tokens on processors with AMX: weights stay the small integers that they are, and tiles of 16 tokens by
// 32 inputs are multiplied with tiles of 32 inputs by 16 outputs, with sums in int32.
//
//     for each panel of 32 outputs
//         for each chunk of 256 inputs
//             its weights are unpacked to uint8: 8 KB, and the scales of its blocks to float
//             for each 16 tokens
//                 for each block of 32 inputs of the chunk      3 tiles loaded, 2 multiplications, 2 stored
//                 for each 4 tokens                             products times scales, sums in registers
//
// It is multiply_amx.cpp's work with less unpacking, which few tokens do not repay, and more scaling, which grows with the tokens.
//
// Compiled with -mamx-tile -mamx-int8 and those of AVX-512: nothing here may be called without them.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "kernels/activations.h"
#include "kernels/tiles.h"
#include "kernels/unpack.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

namespace {

constexpr size_t SIDE_BY_SIDE = 2;  // groups of a tile's outputs
constexpr size_t HALVES = 2;        // tiles of outputs of a panel
constexpr int PANEL_GROUPS = SIDE_BY_SIDE * HALVES;
constexpr int PANEL = PANEL_GROUPS * GROUP;       // outputs
constexpr int CHUNK = SUPER_BLOCK;                // inputs
constexpr size_t MOST_PARTS = CHUNK / BLOCK * 2;  // of a chunk's inputs, each with a scale
constexpr int64_t TOKENS_TOGETHER = 4;            // that are scaled

using Numbers = Floats<SIDE_BY_SIDE>;
using Bits = Words<SIDE_BY_SIDE>;
using Sums = Integers<SIDE_BY_SIDE>;

enum Register { SUM_00, SUM_01, SUM_10, SUM_11, TOKENS, WEIGHTS_0, WEIGHTS_1 };

int64_t whole(int64_t n, int64_t size) {
    return (n + size - 1) / size * size;
}

/// A thread's own memory.
struct Scratch {
    alignas(64) Bits weights[MOST_PARTS][HALVES][STEPS];
    Line<SIDE_BY_SIDE> lines[MOST_PARTS][HALVES];
    Sums products[MOST_PARTS][HALVES][TILE];

    /// Sums of a panel, behind it: [whole TOKENS_TOGETHER][HALVES].
    [[nodiscard]] Numbers * sums() { return reinterpret_cast<Numbers *>(this + 1); }
};

/// Tiles are whole: tokens are read up to the end of the last one, and those that are not there not written.
size_t tiled_tokens_bytes(ggml_type weights, int64_t n_inputs, int64_t n_tokens) noexcept {
    return tokens_bytes(weights, n_inputs, whole(n_tokens, n_tokens < TILE ? TOKENS_TOGETHER : TILE));
}

size_t scratch_bytes(int64_t n_tokens) noexcept {
    return sizeof(Scratch) + static_cast<size_t>(whole(n_tokens, TOKENS_TOGETHER)) * HALVES * sizeof(Numbers);
}

/// Multiplies weights of one type.
template <class Packed>
class ByteMultiplication {
  public:
    explicit ByteMultiplication(const Operands & operands) noexcept
        : operands_(operands),
          scratch_(*static_cast<Scratch *>(operands.scratch)),
          layout_(token_layout(Packed::TYPE, operands.n_inputs)),
          n_blocks_(operands.n_inputs / Packed::INPUTS) {}

    void run() {
        const int64_t n_tokens = operands_.n_tokens;
        const int64_t n_rows = std::min<int64_t>(whole(n_tokens, TOKENS_TOGETHER), TILE);
        TileShapes shapes;
        for (const Register sum : {SUM_00, SUM_01, SUM_10, SUM_11}) shapes.set(sum, static_cast<int>(n_rows), 64);
        for (const Register weights : {WEIGHTS_0, WEIGHTS_1}) shapes.set(weights, N_STEPS, 64);
        shapes.set(TOKENS, static_cast<int>(n_rows), PART);
        Tiles tiles(shapes);
        for (int64_t group = 0; group < operands_.n_groups; group += PANEL_GROUPS) {
            std::fill_n(scratch_.sums(), static_cast<size_t>(whole(n_tokens, TOKENS_TOGETHER)) * HALVES, Numbers{});
            for (int64_t input = 0; input < operands_.n_inputs; input += CHUNK) {
                const auto n_inputs = static_cast<size_t>(std::min<int64_t>(CHUNK, operands_.n_inputs - input));
                unpack(group, input, n_inputs / BLOCK);
                for (int64_t first = 0; first < n_tokens; first += TILE) {
                    add_products(tiles, first, input, n_inputs / PART);
                    const int64_t end = std::min<int64_t>(first + TILE, n_tokens);
                    for (int64_t i = first; i < end; i += TOKENS_TOGETHER) {
                        scale(i, i - first, input, n_inputs / PART);
                    }
                }
            }
            write(group);
        }
    }

  private:
    static constexpr int PART = BLOCK / Packed::SCALES;  // inputs that share a scale
    static constexpr int N_STEPS = PART / STEP;

    /// A group's block with input `input`. Behind the last group there is none: it stands in for them.
    [[nodiscard]] const Packed * block(int64_t group, int64_t input) const {
        return static_cast<const Packed *>(operands_.groups) + std::min(group, operands_.n_groups - 1) * n_blocks_ +
               input / Packed::INPUTS;
    }

    /// Unpacks `n` blocks of 32 inputs of a panel.
    void unpack(int64_t group, int64_t input, size_t n) {
        constexpr size_t IN_BLOCK = Packed::INPUTS / BLOCK;
        for (size_t half = 0; half < HALVES; ++half) {
            const Packed * first = block(group + static_cast<int64_t>(SIDE_BY_SIDE * half), input);
            const Packed * second = block(group + static_cast<int64_t>(SIDE_BY_SIDE * half) + 1, input);
            const ptrdiff_t next = (second - first) * static_cast<ptrdiff_t>(sizeof(Packed));
            for (size_t i = 0; i < n / IN_BLOCK; ++i) {
                const Blocks<Packed, SIDE_BY_SIDE> blocks{first[i], next};
                for_each_32_inputs<Packed>([&](size_t j) {
                    HARP_UNROLLED for (size_t part = 0; part < Packed::SCALES; ++part) {
                        const size_t at = (i * IN_BLOCK + j) * Packed::SCALES + part;
                        scratch_.lines[at][half] = line(blocks, j, part);
                        HARP_UNROLLED for (size_t t = 0; t < N_STEPS; ++t) {
                            scratch_.weights[at][half][t] = step(blocks, j, part * N_STEPS + t);
                        }
                    }
                });
            }
        }
    }

    /// Products of a tile's tokens and the chunk's parts.
    void add_products(Tiles & tiles, int64_t token, int64_t input, size_t n_parts) {
        const char * activations = token_at(token) + input;
        const auto add = [&]<int SUM_0, int SUM_1>(size_t i) {
            tiles.load<TOKENS>(activations + i * size_t{PART}, layout_.bytes);
            tiles.load<WEIGHTS_0>(scratch_.weights[i][0], 64);
            tiles.load<WEIGHTS_1>(scratch_.weights[i][1], 64);
            tiles.zero<SUM_0>();
            tiles.zero<SUM_1>();
            tiles.multiply_bytes<SUM_0, TOKENS, WEIGHTS_0>();
            tiles.multiply_bytes<SUM_1, TOKENS, WEIGHTS_1>();
        };
        const auto store = [&]<int SUM_0, int SUM_1>(size_t i) {
            tiles.store<SUM_0>(scratch_.products[i][0], 64);
            tiles.store<SUM_1>(scratch_.products[i][1], 64);
        };
        // multiplications take long until they can be stored: meanwhile the next ones are begun
        add.template operator()<SUM_00, SUM_01>(0);
        for (size_t i = 1; i < n_parts; i += 2) {
            add.template operator()<SUM_10, SUM_11>(i);
            store.template operator()<SUM_00, SUM_01>(i - 1);
            if (i + 1 < n_parts) add.template operator()<SUM_00, SUM_01>(i + 1);
            store.template operator()<SUM_10, SUM_11>(i);
        }
        if (n_parts % 2 != 0) store.template operator()<SUM_00, SUM_01>(n_parts - 1);
    }

    /// Adds a chunk's products of four tokens from `token` on, which stand in the tile's rows from `row` on, times their scales.
    void scale(int64_t token, int64_t row, int64_t input, size_t n_parts) {
        constexpr size_t SHARE_SCALE = Packed::INPUTS / PART;  // parts, of the activations' scale
        Activations of[TOKENS_TOGETHER];
        for (int64_t k = 0; k < TOKENS_TOGETHER; ++k) {
            of[k] = view(layout_, token_at(token + k));
            of[k].d += input / Packed::INPUTS;
            of[k].sums += input / PART;
        }
        Numbers * sums = scratch_.sums() + token * static_cast<int64_t>(HALVES);
        for (size_t half = 0; half < HALVES; ++half) {
            Numbers totals[TOKENS_TOGETHER];
            HARP_UNROLLED for (int64_t k = 0; k < TOKENS_TOGETHER; ++k) {
                totals[k] = sums[k * static_cast<int64_t>(HALVES) + static_cast<int64_t>(half)];
            }
            for (size_t first = 0; first < n_parts; first += SHARE_SCALE) {
                Numbers parts[TOKENS_TOGETHER];
                HARP_UNROLLED for (size_t i = 0; i < SHARE_SCALE; ++i) {
                    const Line<SIDE_BY_SIDE> & line = scratch_.lines[first + i][half];
                    HARP_UNROLLED for (int64_t k = 0; k < TOKENS_TOGETHER; ++k) {
                        const Sums product = scratch_.products[first + i][half][row + k];
                        const Numbers number = __builtin_convertvector(product, Numbers);
                        const float sum = of[k].sums[first + i];
                        parts[k] = i == 0 ? line.offset * sum : parts[k] + line.offset * sum;
                        parts[k] += number * line.scale;
                    }
                }
                HARP_UNROLLED for (int64_t k = 0; k < TOKENS_TOGETHER; ++k) {
                    totals[k] += parts[k] * of[k].d[first / SHARE_SCALE];
                }
            }
            HARP_UNROLLED for (int64_t k = 0; k < TOKENS_TOGETHER; ++k) {
                sums[k * static_cast<int64_t>(HALVES) + static_cast<int64_t>(half)] = totals[k];
            }
        }
    }

    [[nodiscard]] const char * token_at(int64_t token) const {
        return static_cast<const char *>(operands_.tokens) + static_cast<size_t>(token) * layout_.bytes;
    }

    /// Writes a panel's sums to where they belong.
    void write(int64_t group) const {
        const int64_t n_outputs = std::min<int64_t>(PANEL_GROUPS, operands_.n_groups - group) * GROUP;
        const auto * sums = reinterpret_cast<const float *>(scratch_.sums());
        for (int64_t i = 0; i < operands_.n_tokens; ++i, sums += PANEL) {
            const int64_t row = operands_.rows == nullptr ? i : operands_.rows[i];
            std::copy_n(sums, n_outputs, operands_.out + row * operands_.out_stride + group * GROUP);
        }
    }

    const Operands & operands_;
    Scratch & scratch_;
    TokenLayout layout_;
    int64_t n_blocks_;  // of a group
};

template <class Packed>
void multiply(const Operands & operands) noexcept {
    ByteMultiplication<Packed>(operands).run();
}

}  // namespace

#if defined(HARP_EMULATE_AMX)
Kernel emulated_amx_bytes_kernel(ggml_type weights) noexcept {
#else
Kernel amx_bytes_kernel(ggml_type weights) noexcept {
#endif
    return {tiled_tokens_bytes, scratch_bytes, quantize_token,
            visit_packed(weights, []<class Packed>(Type<Packed>) { return multiply<Packed>; })};
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

Kernel amx_bytes_kernel(ggml_type) noexcept {
    return {};
}

}  // namespace harp::kernels

#endif
