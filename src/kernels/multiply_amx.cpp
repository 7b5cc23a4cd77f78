// The kernel for many tokens on processors with AMX: weights are unpacked to bfloat16 once for all tokens, and tiles of 16 tokens by
// 32 inputs are multiplied with tiles of 32 inputs by 16 outputs, with sums in float.
//
//     for each 8 panels
//         for each slice of about 512 inputs              its activations of all tokens stay in L2
//             for each panel of 32 outputs                its weights in the slice are unpacked: 32 KB, in L1
//                 for each 32 tokens                      2 x 2 tiles of sums, in tile registers
//                     for each 32 inputs of the slice     4 tiles loaded, 4 multiplications
//
// Nothing else is done per weight and token: blocks have been scaled when they were unpacked. Weights and activations keep 8 bits of
// their mantissa, which is more than ggml's 8-bit activations keep of most values.
//
// Compiled with -mamx-tile -mamx-bf16 and those of AVX-512: nothing here may be called without them.
//
// HARP_EMULATE_AMX: tiles in plain C++, for tests on processors that lack them.
#include "kernels/multiply.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "kernels/unpack.h"
#include "kernels/unrolled.h"

#if !defined(HARP_EMULATE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace harp::kernels {

namespace {

constexpr int TILE = 16;               // rows of a tile: tokens, outputs
constexpr int TILE_BYTES = TILE * 64;  // 16 rows by 32 values of bfloat16, or 16 of float
constexpr int PANEL = 2 * TILE;        // outputs
constexpr int PANEL_GROUPS = PANEL / GROUP;
constexpr int PANELS = 8;         // that share a slice of the tokens
constexpr int TOKENS = 2 * TILE;  // that are multiplied together
constexpr int MOST_INPUTS = 640;  // that are unpacked together, a slice
constexpr int MOST_BLOCKS = MOST_INPUTS / BLOCK;

/// Names of the tile registers.
enum Register { SUM_00, SUM_01, SUM_10, SUM_11, TOKENS_0, TOKENS_1, WEIGHTS_0, WEIGHTS_1 };

#if defined(HARP_EMULATE_AMX)

/// Tile registers in memory, and what the instructions do with them.
class Tiles {
  public:
    template <Register TO>
    void zero() {
        std::memset(registers_[TO], 0, TILE_BYTES);
    }
    template <Register TO>
    void load(const void * from, size_t stride) {
        for (size_t i = 0; i < TILE; ++i)
            std::memcpy(registers_[TO][i], static_cast<const char *>(from) + i * stride, 64);
    }
    template <Register FROM>
    void store(void * to, size_t stride) const {
        for (size_t i = 0; i < TILE; ++i) std::memcpy(static_cast<char *>(to) + i * stride, registers_[FROM][i], 64);
    }
    /// sum[m][n] += a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1]
    template <Register SUM, Register A, Register B>
    void multiply() {
        for (int m = 0; m < TILE; ++m) {
            for (int n = 0; n < TILE; ++n) {
                float sum = 0;
                std::memcpy(&sum, registers_[SUM][m] + 4 * n, sizeof(sum));
                for (int k = 0; k < TILE; ++k) {
                    for (int i = 0; i < 2; ++i) sum += half(A, m, 2 * k + i) * half(B, k, 2 * n + i);
                }
                std::memcpy(registers_[SUM][m] + 4 * n, &sum, sizeof(sum));
            }
        }
    }

  private:
    [[nodiscard]] float half(Register tile, int row, int i) const {
        uint16_t bits = 0;
        std::memcpy(&bits, registers_[tile][row] + 2 * i, sizeof(bits));
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value = 0;
        std::memcpy(&value, &wide, sizeof(value));
        return value;
    }

    char registers_[8][TILE][64] = {};
};

#else

/// The tile registers of this thread, all 16 rows by 64 bytes; what they were configured as before (ggml's kernels configure them
/// once a thread) is put back.
class Tiles {
  public:
    Tiles() noexcept {
        _tile_storeconfig(&before_);
        Configuration all;
        // GCC 12 believes that the instruction reads eight bytes, and drops the stores to the others
        asm volatile("" : : "r"(&all) : "memory");
        _tile_loadconfig(&all);
    }
    ~Tiles() {
        if (before_.palette == 0) {
            _tile_release();
        } else {
            asm volatile("" : : "r"(&before_) : "memory");
            _tile_loadconfig(&before_);
        }
    }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
    Tiles(Tiles &&) = delete;
    Tiles & operator=(Tiles &&) = delete;

    // GCC's intrinsics are macros that take nothing but a literal for a register
    template <Register TO>
    void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(TO));
    }
    template <Register TO>
    void load(const void * from, size_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
    }
    template <Register FROM>
    void store(void * to, size_t stride) const {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(FROM) : "memory");
    }
    template <Register SUM, Register A, Register B>
    void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
    }

  private:
    struct alignas(64) Configuration {
        uint8_t palette = 1;
        uint8_t start_row = 0;
        uint8_t reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
    };

    Configuration before_;
};

#endif

constexpr size_t SIDE_BY_SIDE = 2;  // groups of a tile's outputs
using Numbers = Floats<SIDE_BY_SIDE>;
using Bits = Words<SIDE_BY_SIDE>;

Bits bits(Numbers values) {
    return reinterpret_cast<Bits>(values);
}

/// Pairs of numbers as pairs of bfloat16, rounded to nearest.
Bits bfloat16_pairs(Numbers first, Numbers second) {
    constexpr uint32_t HALF = 0x8000;
    return (bits(first) + HALF) >> 16 | ((bits(second) + HALF) & 0xFFFF0000);
}

/// Unpacks 32 inputs of 16 outputs as a tile: row i has inputs 2 i and 2 i + 1 of each output.
template <class Packed>
void unpack_tile(const Blocks<Packed, SIDE_BY_SIDE> & block, size_t j, char * tile) {
    auto * rows = reinterpret_cast<Bits *>(tile);
    HARP_UNROLLED for (size_t half = 0; half < 2; ++half) {
        const Line<SIDE_BY_SIDE> of = line(block, j, half);
        HARP_UNROLLED for (size_t t = half * STEPS / 2; t < (half + 1) * STEPS / 2; ++t) {
            const Bits q = step(block, j, t);
            const auto value = [&](Bits byte) {
                const auto number = reinterpret_cast<Integers<SIDE_BY_SIDE>>(byte);
                return of.scale * __builtin_convertvector(number, Numbers) + of.offset;
            };
            rows[2 * t] = bfloat16_pairs(value(q & 255), value((q >> 8) & 255));
            rows[2 * t + 1] = bfloat16_pairs(value((q >> 16) & 255), value(q >> 24));
        }
    }
}

/// Tokens up to the end of the last tile.
int64_t whole_tiles(int64_t n_tokens) {
    return (n_tokens + TILE - 1) / TILE * TILE;
}

/// A thread's own memory.
struct Scratch {
    /// Unpacked weights of a panel and a slice.
    alignas(64) char weights[MOST_BLOCKS][2][TILE_BYTES];

    /// Sums of a panel, behind it: [PANELS][whole tiles of tokens][PANEL].
    [[nodiscard]] float * sums(int panel, int64_t n_tokens) {
        return reinterpret_cast<float *>(this + 1) + panel * whole_tiles(n_tokens) * PANEL;
    }
};

/// Adds the products of a slice for 32 tokens, or for 16: then those of the second 16 are left out.
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

/// Tokens as tiles: 16 of them by 32 inputs, one tile after the other.
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

/// Multiplies weights of one type.
template <class Packed>
class TiledMultiplication {
  public:
    explicit TiledMultiplication(const Operands & operands) noexcept
        : operands_(operands),
          scratch_(*static_cast<Scratch *>(operands.scratch)),
          n_blocks_(operands.n_inputs / Packed::INPUTS),
          slice_(slice_of(operands.n_inputs)) {}

    void run() {
        for (int64_t first = 0; first < operands_.n_groups; first += PANELS * PANEL_GROUPS) {
            const int64_t n_groups = std::min<int64_t>(operands_.n_groups - first, PANELS * PANEL_GROUPS);
            const auto n_panels = static_cast<int>((n_groups + PANEL_GROUPS - 1) / PANEL_GROUPS);
            for (int64_t input = 0; input < operands_.n_inputs; input += slice_) {
                for (int panel = 0; panel < n_panels; ++panel) {
                    add_slice_of_panel(first + int64_t{panel} * PANEL_GROUPS, input,
                                       scratch_.sums(panel, operands_.n_tokens));
                }
            }
            for (int panel = 0; panel < n_panels; ++panel) {
                write(first + int64_t{panel} * PANEL_GROUPS, scratch_.sums(panel, operands_.n_tokens));
            }
        }
    }

  private:
    /// Inputs of a slice: slices of one size, as few as possible, of whole blocks.
    static int64_t slice_of(int64_t n_inputs) {
        const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
        const int64_t even = parts(n_inputs, parts(n_inputs, MOST_INPUTS));
        return std::min<int64_t>(parts(even, Packed::INPUTS), MOST_INPUTS / Packed::INPUTS) * Packed::INPUTS;
    }

    /// @param group  the panel's first
    void add_slice_of_panel(int64_t group, int64_t input, float * sums) {
        const auto n = static_cast<int>(std::min<int64_t>(slice_, operands_.n_inputs - input) / BLOCK);
        unpack(group, input / Packed::INPUTS, n);
        const size_t next_16 = static_cast<size_t>(TILE * operands_.n_inputs) * sizeof(uint16_t);
        const char * tokens =
            static_cast<const char *>(operands_.tokens) + static_cast<size_t>(input / BLOCK) * TILE_BYTES;
        for (int64_t token = 0; token < operands_.n_tokens; token += TOKENS, tokens += 2 * next_16) {
            const auto add = operands_.n_tokens - token > TILE ? add_slice<true> : add_slice<false>;
            add(tiles_, scratch_, tokens, next_16, n, input == 0, sums + token * PANEL);
        }
    }

    /// Unpacks `n` times 32 inputs of a panel, from block `first` of each group on.
    void unpack(int64_t group, int64_t first, int n) {
        constexpr int IN_BLOCK = Packed::INPUTS / BLOCK;
        for (int half = 0; half < 2; ++half) {
            const Packed * blocks = block(group + int64_t{2} * half) + first;
            const Packed * next_blocks = block(group + int64_t{2} * half + 1) + first;
            const ptrdiff_t next = (next_blocks - blocks) * static_cast<ptrdiff_t>(sizeof(Packed));
            for (int i = 0; i < n; ++i) {
                unpack_tile(Blocks<Packed, SIDE_BY_SIDE>{blocks[i / IN_BLOCK], next}, static_cast<size_t>(i % IN_BLOCK),
                            scratch_.weights[i][half]);
            }
        }
    }

    /// A group's first block. Behind the last group there is none: it stands in for them.
    [[nodiscard]] const Packed * block(int64_t group) const {
        return static_cast<const Packed *>(operands_.groups) + std::min(group, operands_.n_groups - 1) * n_blocks_;
    }

    /// Writes a panel's sums to where they belong.
    void write(int64_t group, const float * sums) const {
        const int64_t n_outputs = std::min<int64_t>(PANEL_GROUPS, operands_.n_groups - group) * GROUP;
        for (int64_t i = 0; i < operands_.n_tokens; ++i, sums += PANEL) {
            const int64_t row = operands_.rows == nullptr ? i : operands_.rows[i];
            float * out = operands_.out + row * operands_.out_stride + group * GROUP;
            if (n_outputs == PANEL) {
                std::memcpy(out, sums, PANEL * sizeof(float));
            } else {
                std::copy_n(sums, n_outputs, out);
            }
        }
    }

    const Operands & operands_;
    Scratch & scratch_;
    int64_t n_blocks_;  // of a group
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
