// The kernel for many tokens on processors with AMX. Weights are unpacked to bfloat16 once for all tokens. Tiles of 16
// tokens by 32 inputs are multiplied with tiles of 32 inputs by 16 outputs; sums are in float.
//
//     for each 8 panels
//         for each slice of about 512 inputs              the slice's activations of all tokens stay in L2
//             for each panel of 32 outputs                its weights in the slice are unpacked: 32 KB, in L1
//                 for each 32 tokens                      2 x 2 tiles of sums, in tile registers
//                     for each 32 inputs of the slice     4 tiles loaded, 4 multiplications
//
// There is no other work per weight and token, since blocks are scaled when they are unpacked. Weights and activations
// keep 8 bits of their mantissa, which for most values is more than ggml's 8-bit activations keep.
//
// Compiled with -mamx-tile -mamx-bf16 and the flags of AVX-512: call nothing here on a processor without them.
//
// HARP_EMULATE_AMX: tiles in plain C++, for tests on other processors.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "kernels/tiles.h"
#include "kernels/unpack.h"
#include "kernels/unrolled.h"

#if !defined(HARP_EMULATE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace harp::kernels {

namespace {

constexpr int TILE_BYTES = TILE * 64;  // 16 rows of 32 bfloat16 values or 16 floats
constexpr int PANEL = 2 * TILE;        // outputs
constexpr int PANELS = 8;              // panels that share a slice of the tokens
constexpr int TOKENS = 2 * TILE;       // tokens that are multiplied together
constexpr int MOST_INPUTS = 640;       // inputs of a slice, at most
constexpr int MOST_BLOCKS = MOST_INPUTS / BLOCK;

/// Use of the tile registers.
enum Register { SUM_00, SUM_01, SUM_10, SUM_11, TOKENS_0, TOKENS_1, WEIGHTS_0, WEIGHTS_1 };

using Numbers = Floats<TILE>;
using Bits = Words<TILE>;

Bits bits(Numbers values) {
    return reinterpret_cast<Bits>(values);
}

/// Packs two vectors of floats as pairs of bfloat16, rounded to nearest.
Bits bfloat16_pairs(Numbers first, Numbers second) {
    constexpr uint32_t HALF = 0x8000;
    return (bits(first) + HALF) >> 16 | ((bits(second) + HALF) & 0xFFFF0000);
}

/// Unpacks 32 inputs of 16 outputs as a tile: row i holds inputs 2 i and 2 i + 1 of each output.
template <class Packed>
void unpack_tile(const Rows<Packed, TILE> & weights, size_t j, char * tile) {
    auto * rows = reinterpret_cast<Bits *>(tile);
    HARP_UNROLLED for (size_t half = 0; half < 2; ++half) {
        const Line<TILE> of = line(weights, j, half);
        HARP_UNROLLED for (size_t t = half * STEPS / 2; t < (half + 1) * STEPS / 2; ++t) {
            const Bits q = step(weights, j, t);
            const auto value = [&](Bits byte) {
                const auto number = reinterpret_cast<Integers<TILE>>(byte);
                return of.scale * __builtin_convertvector(number, Numbers) + of.offset;
            };
            rows[2 * t] = bfloat16_pairs(value(q & 255), value((q >> 8) & 255));
            rows[2 * t + 1] = bfloat16_pairs(value((q >> 16) & 255), value(q >> 24));
        }
    }
}

/// Number of tokens rounded up to whole tiles.
int64_t whole_tiles(int64_t n_tokens) {
    return (n_tokens + TILE - 1) / TILE * TILE;
}

/// Memory of one thread.
struct Scratch {
    /// Unpacked weights of one panel in one slice.
    alignas(64) char weights[MOST_BLOCKS][2][TILE_BYTES];

    /// Sums of a panel, stored after this structure: [PANELS][whole tiles of tokens][PANEL].
    [[nodiscard]] float * sums(int panel, int64_t n_tokens) {
        return reinterpret_cast<float *>(this + 1) + panel * whole_tiles(n_tokens) * PANEL;
    }
};

/// Adds the products of a slice for 32 tokens, or only for the first 16 of them.
template <bool ALL>
void add_slice(Tiles & tiles, const Scratch & scratch, const char * tokens, size_t next_16, int n_blocks, bool is_first,
               float * sums) {
    constexpr size_t STRIDE = PANEL * sizeof(float);
    float * second_sums = sums + static_cast<ptrdiff_t>(TILE) * PANEL;
    if (is_first) {
        tiles.zero<SUM_00>();
        tiles.zero<SUM_01>();
        if constexpr (ALL) tiles.zero<SUM_10>();
        if constexpr (ALL) tiles.zero<SUM_11>();
    } else {
        tiles.load<SUM_00>(sums, STRIDE);
        tiles.load<SUM_01>(sums + TILE, STRIDE);
        if constexpr (ALL) tiles.load<SUM_10>(second_sums, STRIDE);
        if constexpr (ALL) tiles.load<SUM_11>(second_sums + TILE, STRIDE);
    }
    for (int i = 0; i < n_blocks; ++i) {
        tiles.load<WEIGHTS_0>(scratch.weights[i][0], 64);
        tiles.load<WEIGHTS_1>(scratch.weights[i][1], 64);
        tiles.load<TOKENS_0>(tokens + static_cast<size_t>(i) * TILE_BYTES, 64);
        tiles.multiply<SUM_00, TOKENS_0, WEIGHTS_0>();
        tiles.multiply<SUM_01, TOKENS_0, WEIGHTS_1>();
        if constexpr (ALL) {
            tiles.load<TOKENS_1>(tokens + next_16 + static_cast<size_t>(i) * TILE_BYTES, 64);
            tiles.multiply<SUM_10, TOKENS_1, WEIGHTS_0>();
            tiles.multiply<SUM_11, TOKENS_1, WEIGHTS_1>();
        }
    }
    tiles.store<SUM_00>(sums, STRIDE);
    tiles.store<SUM_01>(sums + TILE, STRIDE);
    if constexpr (ALL) tiles.store<SUM_10>(second_sums, STRIDE);
    if constexpr (ALL) tiles.store<SUM_11>(second_sums + TILE, STRIDE);
}

size_t tokens_bytes(ggml_type /*weights*/, int64_t n_inputs, int64_t n_tokens) noexcept {
    return static_cast<size_t>(whole_tiles(n_tokens) * n_inputs) * sizeof(uint16_t);
}

size_t scratch_bytes(int64_t n_tokens) noexcept {
    return sizeof(Scratch) + static_cast<size_t>(PANELS * whole_tiles(n_tokens) * PANEL) * sizeof(float);
}

/// Stores tokens as tiles of 16 tokens by 32 inputs, one tile after the other.
void quantize(ggml_type /*weights*/, const float * row, int64_t n_inputs, int64_t token, char * tokens) noexcept {
    char * to = tokens + static_cast<size_t>(token / TILE * TILE * n_inputs) * sizeof(uint16_t) +
                static_cast<size_t>(token % TILE) * 64;
    for (int64_t i = 0; i < n_inputs; i += BLOCK, to += TILE_BYTES) {
        uint16_t rounded[BLOCK];
        for (int k = 0; k < BLOCK; ++k) {
            uint32_t value = 0;
            std::memcpy(&value, row + i + k, sizeof(value));
            rounded[k] = static_cast<uint16_t>((value + 0x8000) >> 16);
        }
        std::memcpy(to, rounded, sizeof(rounded));
    }
}

/// A multiplication with weights of one type.
template <class Packed>
class TiledMultiplication {
  public:
    explicit TiledMultiplication(const Operands & operands) noexcept
        : operands_(operands),
          scratch_(*static_cast<Scratch *>(operands.scratch)),
          n_blocks_(operands.n_inputs / Packed::INPUTS),
          slice_(slice_of(operands.n_inputs)) {}

    void run() {
        for (int64_t first = 0; first < operands_.n_outputs; first += PANELS * PANEL) {
            const int64_t n_outputs = std::min<int64_t>(operands_.n_outputs - first, PANELS * PANEL);
            const auto n_panels = static_cast<int>((n_outputs + PANEL - 1) / PANEL);
            for (int64_t input = 0; input < operands_.n_inputs; input += slice_) {
                for (int panel = 0; panel < n_panels; ++panel) {
                    add_slice_of_panel(first + int64_t{panel} * PANEL, input, scratch_.sums(panel, operands_.n_tokens));
                }
            }
            for (int panel = 0; panel < n_panels; ++panel) {
                write(first + int64_t{panel} * PANEL, scratch_.sums(panel, operands_.n_tokens));
            }
        }
    }

  private:
    /// Inputs of a slice. Slices have equal size, are as few as possible, and consist of whole blocks.
    static int64_t slice_of(int64_t n_inputs) {
        const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
        const int64_t even = parts(n_inputs, parts(n_inputs, MOST_INPUTS));
        return std::min<int64_t>(parts(even, Packed::INPUTS), MOST_INPUTS / Packed::INPUTS) * Packed::INPUTS;
    }

    /// @param output  the panel's first output
    void add_slice_of_panel(int64_t output, int64_t input, float * sums) {
        const auto n = static_cast<int>(std::min<int64_t>(slice_, operands_.n_inputs - input) / BLOCK);
        unpack(output / GROUP, input / Packed::INPUTS, n);
        const size_t next_16 = static_cast<size_t>(TILE * operands_.n_inputs) * sizeof(uint16_t);
        const char * tokens =
            static_cast<const char *>(operands_.tokens) + static_cast<size_t>(input / BLOCK) * TILE_BYTES;
        for (int64_t token = 0; token < operands_.n_tokens; token += TOKENS, tokens += 2 * next_16) {
            const auto add = operands_.n_tokens - token > TILE ? add_slice<true> : add_slice<false>;
            add(tiles_, scratch_, tokens, next_16, n, input == 0, sums + token * PANEL);
        }
    }

    /// Unpacks `n` times 32 inputs of a panel, starting at block `first` of each group.
    void unpack(int64_t group, int64_t first, int n) {
        constexpr int IN_BLOCK = Packed::INPUTS / BLOCK;
        static_assert(TILE == GROUP);
        for (int half = 0; half < 2; ++half) {
            const Packed * blocks = block(group + half) + first;
            for (int i = 0; i < n / IN_BLOCK; ++i) {
                for_each_32_inputs<Packed>([&](size_t j) {
                    unpack_tile(Rows<Packed, TILE>{blocks[i], 0}, j,
                                scratch_.weights[static_cast<size_t>(i * IN_BLOCK) + j][half]);
                });
            }
        }
    }

    /// The first block of a group. For groups after the last, which do not exist, it is the last group's.
    [[nodiscard]] const Packed * block(int64_t group) const {
        return static_cast<const Packed *>(operands_.groups) +
               std::min(group, groups_of(operands_.n_outputs) - 1) * n_blocks_;
    }

    /// Writes a panel's sums to the result.
    void write(int64_t output, const float * sums) const {
        const int64_t n_outputs = std::min<int64_t>(PANEL, operands_.n_outputs - output);
        for (int64_t i = 0; i < operands_.n_tokens; ++i, sums += PANEL) {
            const int64_t row = operands_.rows == nullptr ? i : operands_.rows[i];
            float * out = operands_.out + row * operands_.out_stride + output;
            if (n_outputs == PANEL) {
                std::memcpy(out, sums, PANEL * sizeof(float));
            } else {
                std::copy_n(sums, n_outputs, out);
            }
        }
    }

    const Operands & operands_;
    Scratch & scratch_;
    int64_t n_blocks_;  // in a group
    int64_t slice_;
    Tiles tiles_;
};

template <class Packed>
void multiply(const Operands & operands) noexcept {
    TiledMultiplication<Packed>(operands).run();
}

}  // namespace

#if defined(HARP_EMULATE_AMX)
Kernel emulated_amx_kernel(ggml_type weights) noexcept {
#else
bool allow_amx() noexcept {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // asm/prctl.h, which older headers lack
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

Kernel amx_kernel(ggml_type weights) noexcept {
#endif
    return {tokens_bytes, scratch_bytes, quantize,
            visit_packed(weights, []<class Packed>(Type<Packed>) { return multiply<Packed>; })};
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

bool allow_amx() noexcept {
    return false;
}

Kernel amx_kernel(ggml_type) noexcept {
    return {};
}

}  // namespace harp::kernels

#endif
