// The tile registers of AMX: eight, each of 16 rows by 64 bytes.
//
// HARP_EMULATE_AMX: in plain C++, for tests on processors without AMX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace harp::kernels {

/// Rows of a tile: tokens or outputs.
inline constexpr int TILE = 16;

// NOLINTBEGIN(misc-definitions-in-headers): emulated and real tiles differ
namespace {

#if defined(HARP_EMULATE_AMX)

/// Tile registers in memory, and what the instructions do to them.
class Tiles {
  public:
    template <int TO>
    void zero() {
        std::memset(registers_[TO], 0, sizeof(registers_[TO]));
    }
    template <int TO>
    void load(const void * from, size_t stride) {
        for (size_t i = 0; i < TILE; ++i)
            std::memcpy(registers_[TO][i], static_cast<const char *>(from) + i * stride, 64);
    }
    template <int FROM>
    void store(void * to, size_t stride) const {
        for (size_t i = 0; i < TILE; ++i) std::memcpy(static_cast<char *>(to) + i * stride, registers_[FROM][i], 64);
    }
    /// sum[m][n] += a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1], of bfloat16
    template <int SUM, int A, int B>
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
    [[nodiscard]] float half(int tile, int row, int i) const {
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

/// This thread's tile registers. Restores their previous configuration (ggml's kernels configure them once per thread).
class Tiles {
  public:
    Tiles() noexcept {
        asm volatile("sttilecfg %0" : "=m"(before_));
        configure(Configuration{});
    }
    ~Tiles() {
        if (before_.palette == 0) {
            asm volatile("tilerelease");
        } else {
            configure(before_);
        }
    }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
    Tiles(Tiles &&) = delete;
    Tiles & operator=(Tiles &&) = delete;

    // not GCC's intrinsics: they are macros that accept only a literal as register number
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

    static void configure(const Configuration & configuration) { asm volatile("ldtilecfg %0" : : "m"(configuration)); }

    Configuration before_;
};

#endif

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
