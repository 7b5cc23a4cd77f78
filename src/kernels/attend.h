// Attention of rows that share keys and values, one block of cells at a time, with a running maximum (online softmax).
// attend_avx2.cpp and attend_avx512.cpp compile this file for registers of 8 and of 16 floats. Nothing here may be
// shared by the two, so everything is in an anonymous namespace.
//
// A block is 32 neighbouring cells. Where a token sees few of its neighbours, as in a cache that sequences fill by turns,
// it is the next 32 cells that this token sees. For each block that a row sees:
//
//     keys, values     converted to float32, once for all rows
//     scores           4 cells by 2 or 4 rows: a register of sums for each, then all lanes added up together
//     exp              cells in the lanes of a register
//     out             += exp * value, for a few rows and 4 registers of values at a time
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "kernels/attention.h"
#include "kernels/unpack.h"
#include "kernels/unrolled.h"

namespace harp::kernels {

// NOLINTBEGIN(misc-definitions-in-headers): each instruction set needs a copy
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();

/// The algorithm for registers of LANES floats.
template <size_t LANES>
class Attending {
  public:
    explicit Attending(const AttentionPart & part)
        : part_(part),
          keys_(part.scratch),
          values_(keys_ + ATTENTION_BLOCK * part.key_length),
          scores_(values_ + ATTENTION_BLOCK * part.value_length) {}

    void run() {
        for (AttentionRow & row : part_.rows) {
            row.maximum = -INFINITE;
            row.sum = 0;
            std::fill_n(row.out, part_.value_length, 0.0F);
        }
        find_tokens();
        for (size_t first = 0; first < part_.n_cells; first += ATTENTION_BLOCK) attend_to_neighbours(first);
        for (size_t i = 0; i < n_tokens_; ++i) {
            if (tokens_[i].is_scattered) attend_to_scattered(tokens_[i]);
        }
    }

  private:
    static constexpr size_t SCORED_CELLS = 4, SCORED_ROWS = LANES / SCORED_CELLS;
    /// Rows and registers of values whose sums are kept in registers; there are 16 registers, or 32.
    static constexpr size_t ADDED_ROWS = LANES == 8 ? 3 : 7, ADDED_REGISTERS = 4;
    using Vector = Floats<LANES>;
    using Lanes = std::make_integer_sequence<int, static_cast<int>(LANES)>;

    /// Consecutive rows with one mask, and the cells that they see: a word of bits for each ATTENTION_BLOCK neighbours.
    struct Token {
        const uint16_t * mask;
        std::span<AttentionRow> rows;
        std::array<uint32_t, MOST_ATTENTION_CELLS / ATTENTION_BLOCK> seen;
        bool is_scattered;  // whether few cells are seen in many blocks
    };

    static void store(float * to, Vector vector) { std::memcpy(to, &vector, sizeof(vector)); }

    /// Lane i comes from x where bit BIT of i is clear, from y where it is set. To it is added that vector's lane i ^
    /// BIT.
    template <int BIT, int... I>
    static Vector add_neighbours(Vector x, Vector y, std::integer_sequence<int, I...> /*lanes*/) {
        constexpr auto N = static_cast<int>(LANES);
        return __builtin_shufflevector(x, y, ((I & BIT) != 0 ? N + (I ^ BIT) : I)...) +
               __builtin_shufflevector(x, y, ((I & BIT) != 0 ? N + I : I ^ BIT)...);
    }

    /// Lane i is the sum of all lanes of vectors[i].
    template <int BIT = static_cast<int>(LANES) / 2>
    static Vector sums_of(Vector (&vectors)[LANES]) {
        if constexpr (BIT == 0) {
            return vectors[0];
        } else {
            HARP_UNROLLED for (size_t i = 0; i < BIT; ++i) {
                vectors[i] = add_neighbours<BIT>(vectors[i], vectors[i + BIT], Lanes());
            }
            return sums_of<BIT / 2>(vectors);
        }
    }

    template <int BIT, int... I>
    static Vector swapped(Vector vector, std::integer_sequence<int, I...> /*lanes*/) {
        return __builtin_shufflevector(vector, vector, (I ^ BIT)...);
    }

    /// Reduces all lanes to one number; `two` combines two vectors.
    template <int BIT = static_cast<int>(LANES) / 2, class Two>
    static float reduce(Vector vector, const Two & two) {
        if constexpr (BIT == 0) {
            return vector[0];
        } else {
            return reduce<BIT / 2>(two(vector, swapped<BIT>(vector, Lanes())), two);
        }
    }

    static Vector greater(Vector a, Vector b) { return a > b ? a : b; }

    /// exp(x) for x <= 0, with a relative error below 2^-21; 0 below -87.
    static Vector exponential(Vector x) {
        constexpr float LOG2_E = 1.44269504F, ROUNDING = 0x1.8p23F;
        const Vector scaled = greater(x, Vector{} - 87.5F) * LOG2_E;
        const Vector rounded = scaled + ROUNDING;  // the integer part is in the last bits
        const Vector rest = scaled - (rounded - ROUNDING);
        Vector power = Vector{} + 1.5403530e-4F;  // 2^rest, as a power series
        HARP_UNROLLED for (const float factor :
                           {1.3333558e-3F, 9.6181291e-3F, 5.5504109e-2F, 2.4022651e-1F, 6.9314718e-1F, 1.0F}) {
            power = power * rest + factor;
        }
        const Vector result = reinterpret_cast<Vector>(reinterpret_cast<Integers<LANES>>(power) +
                                                       (reinterpret_cast<Integers<LANES>>(rounded) << 23));
        return x > -87.0F ? result : Vector{};
    }

    /// The hyperbolic tangent.
    static Vector tangent(Vector x) {
        const Vector power = exponential(x < 0 ? 2 * x : -2 * x);
        const Vector result = (1 - power) / (1 + power);
        return x < 0 ? -result : result;
    }

    /// The mask of the block at `first`: in place, or in `copy` with 0 after the last cell if the block is not full.
    [[nodiscard]] const uint16_t * of_block(const uint16_t * mask, size_t first,
                                            uint16_t (&copy)[ATTENTION_BLOCK]) const {
        if (mask == nullptr) return nullptr;
        const size_t n = part_.n_cells - first;
        if (n >= ATTENTION_BLOCK) return mask + first;
        std::fill(std::copy_n(mask + first, n, copy), std::end(copy), uint16_t{0});
        return copy;
    }

    /// The cells of the block at `first` that are seen with a mask, one bit each.
    [[nodiscard]] uint32_t cells_seen(const uint16_t * mask, size_t first) const {
        const uint32_t all = first_bits(part_.n_cells - first);
        if (mask == nullptr) return all;
        uint16_t copy[ATTENTION_BLOCK];
        const uint16_t * halves = of_block(mask, first, copy);
        const __m256i hidden = _mm256_set1_epi16(static_cast<int16_t>(0xFC00));
        const auto compare = [&](int at) {
            return _mm256_cmpeq_epi16(hidden, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves + at)));
        };
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(compare(0), compare(16)), 0b11011000);
        return ~static_cast<uint32_t>(_mm256_movemask_epi8(packed)) & all;
    }

    static uint32_t first_bits(size_t n) { return n >= 32 ? ~0U : (1U << n) - 1; }

    void find_tokens() {
        n_tokens_ = 0;
        for (size_t first = 0, end = 0; first < part_.rows.size(); first = end) {
            Token & token = tokens_[n_tokens_++];
            token.mask = part_.rows[first].mask;
            while (end < part_.rows.size() && part_.rows[end].mask == token.mask) ++end;
            token.rows = part_.rows.subspan(first, end - first);
            size_t n_seen = 0, n_blocks = 0;
            for (size_t i = 0; i * ATTENTION_BLOCK < part_.n_cells; ++i) {
                token.seen[i] = cells_seen(token.mask, i * ATTENTION_BLOCK);
                n_seen += static_cast<size_t>(std::popcount(token.seen[i]));
                if (token.seen[i] != 0) ++n_blocks;
            }
            const size_t n_least = (n_seen + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
            token.is_scattered = n_blocks > n_least + n_least / 4 + 1;
        }
    }

    /// The block at `first`, for all tokens that are not scattered.
    void attend_to_neighbours(size_t first) {
        uint16_t copies[MOST_ATTENTION_ROWS][ATTENTION_BLOCK];
        begin_block();
        for (size_t i = 0; i < n_tokens_; ++i) {
            const Token & token = tokens_[i];
            const uint32_t seen = token.seen[first / ATTENTION_BLOCK];
            if (!token.is_scattered && seen != 0) add_rows(token, seen, of_block(token.mask, first, copies[i]));
        }
        if (n_rows_ == 0) return;
        std::iota(cells_.begin(), cells_.end(), first);
        attend();
    }

    /// All cells that a scattered token sees.
    void attend_to_scattered(const Token & token) {
        uint16_t mask[ATTENTION_BLOCK] = {};
        size_t n = 0;
        const auto attend_to_them = [&] {
            begin_block();
            add_rows(token, first_bits(n), mask);
            attend();
            n = 0;
        };
        for (size_t first = 0; first < part_.n_cells; first += ATTENTION_BLOCK) {
            for (uint32_t left = token.seen[first / ATTENTION_BLOCK]; left != 0; left &= left - 1) {
                cells_[n] = first + static_cast<size_t>(std::countr_zero(left));
                mask[n] = token.mask[cells_[n]];
                if (++n == ATTENTION_BLOCK) attend_to_them();
            }
        }
        if (n > 0) attend_to_them();
    }

    void begin_block() {
        n_rows_ = 0;
        seen_ = 0;
    }

    /// Adds a token's rows to the block. @param seen  the cells of the block that they see  @param mask  of the block
    void add_rows(const Token & token, uint32_t seen, const uint16_t * mask) {
        for (AttentionRow & row : token.rows) {
            rows_[n_rows_] = &row;
            masks_[n_rows_] = mask;
            seen_of_[n_rows_++] = seen;
        }
        seen_ |= seen;
    }

    /// Attends to the block's cells with its rows.
    [[gnu::noinline]] HARP_FLATTEN void attend() {
        n_cells_ = static_cast<size_t>(std::bit_width(seen_));
        load_cells();
        score();
        for (size_t i = 0; i < n_rows_; ++i) weigh(i);
        add_values();
    }

    /// Converts the cells of the block that are seen. The others become 0, since they may hold anything.
    void load_cells() {
        const auto convert = [&](const char * from, size_t stride, size_t length, float * to) {
            for (size_t cell = 0; cell < ATTENTION_BLOCK; ++cell, to += length) {
                if ((seen_ >> cell & 1) == 0) {
                    std::fill_n(to, length, 0.0F);
                    continue;
                }
                const char * halves = from + cells_[cell] * stride;
                for (size_t i = 0; i < length; i += LANES) store(to + i, load_halves<LANES>(halves + 2 * i));
            }
        };
        convert(part_.keys, part_.key_stride, part_.key_length, keys_);
        convert(part_.values, part_.value_stride, part_.value_length, values_);
    }

    /// Calls `function` with n as a constant N, 1 <= N <= MOST.
    template <size_t MOST, class Function>
    static void with_constant(size_t n, const Function & function) {
        if constexpr (MOST > 1) {
            if (n < MOST) return with_constant<MOST - 1>(n, function);
        }
        function(std::integral_constant<size_t, MOST>());
    }

    /// Splits n into parts as few and as even as possible, and calls function(first, n of the part as a constant).
    template <size_t MOST, class Function>
    static void in_parts(size_t n, const Function & function) {
        size_t first = 0;
        for (size_t n_parts = (n + MOST - 1) / MOST; n_parts > 0; --n_parts) {
            const size_t of_part = (n - first + n_parts - 1) / n_parts;
            with_constant<MOST>(of_part, [&](auto constant) { function(first, constant); });
            first += of_part;
        }
    }

    void score() {
        in_parts<SCORED_ROWS>(n_rows_, [&](size_t first, auto n) {
            for (size_t cell = 0; cell < n_cells_; cell += SCORED_CELLS) score<n()>(first, cell);
        });
    }

    template <size_t N>
    void score(size_t first, size_t cell) {
        Vector sums[LANES] = {};  // [SCORED_ROWS][SCORED_CELLS]
        const size_t length = part_.key_length;
        const float * keys = keys_ + cell * length;
        for (size_t i = 0; i < length; i += LANES) {
            Vector of_cells[SCORED_CELLS];
            HARP_UNROLLED for (size_t c = 0; c < SCORED_CELLS; ++c) {
                of_cells[c] = load<Vector>(keys + c * length + i);
            }
            HARP_UNROLLED for (size_t r = 0; r < N; ++r) {
                const Vector query = load<Vector>(rows_[first + r]->query + i);
                HARP_UNROLLED for (size_t c = 0; c < SCORED_CELLS; ++c) {
                    sums[r * SCORED_CELLS + c] += query * of_cells[c];
                }
            }
        }
        const Vector scores = sums_of(sums);
        HARP_UNROLLED for (size_t r = 0; r < N; ++r) {
            std::memcpy(scores_of(first + r) + cell, reinterpret_cast<const float *>(&scores) + r * SCORED_CELLS,
                        SCORED_CELLS * sizeof(float));
        }
    }

    [[nodiscard]] float * scores_of(size_t row) const { return scores_ + row * ATTENTION_BLOCK; }

    /// Turns a row's scores into exp(score - maximum), 0 for cells it does not see, and rescales its sums to a new
    /// maximum.
    void weigh(size_t i) {
        constexpr size_t N = ATTENTION_BLOCK / LANES;
        AttentionRow & row = *rows_[i];
        Vector scores[N];
        Vector greatest = Vector{} - INFINITE;
        HARP_UNROLLED for (size_t n = 0; n < N; ++n) {
            const size_t cell = n * LANES;
            scores[n] = load<Vector>(scores_of(i) + cell) * part_.scale;
            if (part_.cap != 0) scores[n] = part_.cap * tangent(scores[n] / part_.cap);
            if (masks_[i] != nullptr) scores[n] += load_halves<LANES>(masks_[i] + cell);
            scores[n] = is_seen(seen_of_[i] >> cell, Lanes()) ? scores[n] : Vector{} - INFINITE;
            greatest = greater(greatest, scores[n]);
        }
        const float maximum = std::max(row.maximum, reduce(greatest, greater));
        Vector sum = {};
        HARP_UNROLLED for (size_t n = 0; n < N; ++n) {
            const Vector weights = exponential(scores[n] - maximum);
            store(scores_of(i) + n * LANES, weights);
            sum += weights;
        }
        if (row.maximum < maximum) {
            const float factor = std::exp(row.maximum - maximum);  // 0 at first
            row.sum *= factor;
            for (size_t d = 0; d < part_.value_length; d += LANES)
                store(row.out + d, load<Vector>(row.out + d) * factor);
            row.maximum = maximum;
        }
        row.sum += reduce(sum, [](Vector a, Vector b) { return a + b; });
    }

    template <int... I>
    static auto is_seen(uint32_t bits, std::integer_sequence<int, I...> /*lanes*/) {
        const Words<LANES> bit = {1U << static_cast<unsigned>(I)...};
        return (bit & bits) != 0;
    }

    void add_values() {
        in_parts<ADDED_ROWS>(n_rows_, [&](size_t first, auto n) {
            const auto n_registers = part_.value_length / LANES;
            in_parts<ADDED_REGISTERS>(n_registers, [&](size_t at, auto n_at) { add<n(), n_at()>(first, at * LANES); });
        });
    }

    template <size_t N, size_t REGISTERS>
    void add(size_t first, size_t at) {
        Vector sums[N][REGISTERS];
        const float * weights[N];
        HARP_UNROLLED for (size_t r = 0; r < N; ++r) {
            weights[r] = scores_of(first + r);
            HARP_UNROLLED for (size_t i = 0; i < REGISTERS; ++i) {
                sums[r][i] = load<Vector>(rows_[first + r]->out + at + i * LANES);
            }
        }
        const float * values = values_ + at;
        for (size_t cell = 0; cell < n_cells_; ++cell, values += part_.value_length) {
            HARP_UNROLLED for (size_t i = 0; i < REGISTERS; ++i) {
                const Vector value = load<Vector>(values + i * LANES);
                HARP_UNROLLED for (size_t r = 0; r < N; ++r) {
                    sums[r][i] += value * weights[r][cell];
                }
            }
        }
        HARP_UNROLLED for (size_t r = 0; r < N; ++r) {
            HARP_UNROLLED for (size_t i = 0; i < REGISTERS; ++i) {
                store(rows_[first + r]->out + at + i * LANES, sums[r][i]);
            }
        }
    }

    const AttentionPart & part_;
    float *keys_, *values_, *scores_;  // of the block: [cells][key_length], [cells][value_length], [rows][cells]

    std::array<Token, MOST_ATTENTION_ROWS> tokens_;
    size_t n_tokens_ = 0;

    // of the current block
    std::array<size_t, ATTENTION_BLOCK> cells_;                // the number of each cell in the part
    std::array<AttentionRow *, MOST_ATTENTION_ROWS> rows_;     // the rows that see a cell of it
    std::array<const uint16_t *, MOST_ATTENTION_ROWS> masks_;  // of the block's cells, for each row
    std::array<uint32_t, MOST_ATTENTION_ROWS> seen_of_;        // which cells each of them sees
    size_t n_rows_ = 0;
    uint32_t seen_ = 0;   // the cells that any of them sees
    size_t n_cells_ = 0;  // cells up to the last one seen
};

}  // namespace
// NOLINTEND(misc-definitions-in-headers)

}  // namespace harp::kernels
