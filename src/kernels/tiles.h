// The tile registers of AMX: eight, of up to 16 rows by 64 bytes.
//
// HARP_EMULATE_AMX: in plain C++, for tests on processors that lack them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace harp::kernels {

/// Rows of a tile with 16 columns of four bytes, sums among them.
inline constexpr int TILE = 16;

/// Rows and bytes of a row of each register; what is not named is not used.
struct TileShapes {
    struct alignas(64) {
        uint8_t palette = 1;
        uint8_t start_row = 0;
        uint8_t reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } configuration;

    constexpr void set(int index, int rows, int row_bytes) {
        configuration.rows[index] = static_cast<uint8_t>(rows);
        configuration.row_bytes[index] = static_cast<uint16_t>(row_bytes);
    }
};

// NOLINTBEGIN(misc-definitions-in-headers): the emulated ones and the real ones are not the same
namespace {

#if defined(HARP_EMULATE_AMX)

/// Tile registers in memory, and what the instructions do with them.
class Tiles {
  public:
    explicit Tiles(const TileShapes & shapes) : shapes_(shapes) {}

    template <int TO>
    void zero() {
        std::memset(registers_[TO], 0, sizeof(registers_[TO]));
    }
    template <int TO>
    void load(const void * from, size_t stride) {
        zero<TO>();
        for (size_t i = 0; i < rows(TO); ++i) {
            std::memcpy(registers_[TO][i], static_cast<const char *>(from) + i * stride, row_bytes(TO));
        }
    }
    template <int FROM>
    void store(void * to, size_t stride) const {
        for (size_t i = 0; i < rows(FROM); ++i) {
            std::memcpy(static_cast<char *>(to) + i * stride, registers_[FROM][i], row_bytes(FROM));
        }
    }
    /// sum[m][n] += a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1], of bfloat16
    template <int SUM, int A, int B>
    void multiply_bfloat16() {
        multiply<SUM, A, B, float, 2>([&](int tile, size_t row, size_t i) {
            uint16_t bits = 0;
            std::memcpy(&bits, registers_[tile][row] + 2 * i, sizeof(bits));
            const uint32_t wide = static_cast<uint32_t>(bits) << 16;
            float value = 0;
            std::memcpy(&value, &wide, sizeof(value));
            return value;
        });
    }
    /// sum[m][n] += a[m][4 k + i] b[k][4 n + i] for i = 0..3, of int8 and uint8
    template <int SUM, int A, int B>
    void multiply_bytes() {
        multiply<SUM, A, B, int32_t, 4>([&](int tile, size_t row, size_t i) -> int32_t {
            const char byte = registers_[tile][row][i];
            return tile == A ? static_cast<int8_t>(byte) : static_cast<uint8_t>(byte);
        });
    }

  private:
    template <int SUM, int A, int B, class Sum, size_t TOGETHER, class Value>
    void multiply(const Value & value) {
        for (size_t m = 0; m < rows(A); ++m) {
            for (size_t n = 0; n < TILE; ++n) {
                Sum sum = 0;
                std::memcpy(&sum, registers_[SUM][m] + 4 * n, sizeof(sum));
                for (size_t k = 0; k < rows(B); ++k) {
                    for (size_t i = 0; i < TOGETHER; ++i) {
                        sum += value(A, m, TOGETHER * k + i) * value(B, k, TOGETHER * n + i);
                    }
                }
                std::memcpy(registers_[SUM][m] + 4 * n, &sum, sizeof(sum));
            }
        }
    }
    [[nodiscard]] size_t rows(int index) const { return shapes_.configuration.rows[index]; }
    [[nodiscard]] size_t row_bytes(int index) const { return shapes_.configuration.row_bytes[index]; }

    TileShapes shapes_;
    char registers_[8][TILE][64] = {};
};

#else

/// The tile registers of this thread; what they were configured as before (ggml's kernels configure them once a thread) is put back.
class Tiles {
  public:
    explicit Tiles(const TileShapes & shapes) noexcept {
        asm volatile("sttilecfg %0" : "=m"(before_.configuration));
        configure(shapes);
    }
    ~Tiles() {
        if (before_.configuration.palette == 0) {
            asm volatile("tilerelease");
        } else {
            configure(before_);
        }
    }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
    Tiles(Tiles &&) = delete;
    Tiles & operator=(Tiles &&) = delete;

    // GCC's intrinsics are macros that take nothing but a literal for a register
    template <int TO>
    void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(TO));
    }
    template <int TO>
    void load(const void * from, size_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
    }
    template <int FROM>
    void store(void * to, size_t stride) const {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(FROM) : "memory");
    }
    template <int SUM, int A, int B>
    void multiply_bfloat16() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
    }
    template <int SUM, int A, int B>
    void multiply_bytes() {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
    }

  private:
    static void configure(const TileShapes & shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes.configuration)); }

    TileShapes before_;
};

#endif

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
