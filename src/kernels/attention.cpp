#include "kernels/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu_back_end.h"
#include "kernels/multiplication.h"
#include "kernels/work_memory.h"

namespace harp::kernels {

namespace {

/// Cells of a chunk. Each chunk has sums of its own, which are added up in order, so the number of threads changes
/// nothing.
constexpr auto CHUNK = static_cast<int64_t>(MOST_ATTENTION_CELLS);

constexpr auto MOST_ROWS = static_cast<int64_t>(MOST_ATTENTION_ROWS);

/// The parameters of an operation.
struct Parameters {
    explicit Parameters(const ggml_tensor & op) { std::memcpy(this, op.op_params, sizeof(*this)); }

    float scale;  // of scores
    float bias;   // greatest bias of ALiBi
    float cap;    // of scores; 0: none
};

/// A row's softmax over the chunks so far.
struct Softmax {
    float maximum = -std::numeric_limits<float>::infinity();
    float sum = 0;

    /// Adds a chunk's softmax to this one, and its sum of values to `out`.
    void add(float chunk_maximum, float chunk_sum, const float * chunk, float * out, int64_t length) {
        if (chunk_sum == 0) return;  // no cell is seen
        const float greatest = std::max(maximum, chunk_maximum);
        const float before = std::exp(maximum - greatest), now = std::exp(chunk_maximum - greatest);
        for (int64_t i = 0; i < length; ++i) out[i] = out[i] * before + chunk[i] * now;
        sum = sum * before + chunk_sum * now;
        maximum = greatest;
    }

    /// Adds an attention sink: a score without a value.
    void add_sink(float score, float * out, int64_t length) {
        const float greatest = std::max(maximum, score), before = std::exp(maximum - greatest);
        for (int64_t i = 0; i < length; ++i) out[i] *= before;
        sum = sum * before + std::exp(score - greatest);
        maximum = greatest;
    }

    /// A row that sees nothing stays 0, as in ggml.
    void divide(float * out, int64_t length) const {
        const float factor = sum == 0 ? 0 : 1 / sum;
        for (int64_t i = 0; i < length; ++i) out[i] *= factor;
    }
};

/// An operation divided into units of rows that share a head of keys and values in a stream, and units divided into
/// chunks of cells.
class Cut {
  public:
    Cut(const ggml_tensor & op, int n_threads)
        : op_(op),
          query_(*op.src[0]),
          keys_(*op.src[1]),
          values_(*op.src[2]),
          parameters_(op),
          n_shared_(query_.ne[2] / keys_.ne[2] * query_.ne[1]),
          n_parts_((n_shared_ + MOST_ROWS - 1) / MOST_ROWS),
          n_units_(query_.ne[3] * keys_.ne[2] * n_parts_),
          n_chunks_((keys_.ne[1] + CHUNK - 1) / CHUNK),
          is_split_(n_chunks_ > 1 && n_units_ < int64_t{4} * n_threads) {}

    /// Whether each chunk is a task; otherwise each unit is.
    [[nodiscard]] bool is_split() const { return is_split_; }
    [[nodiscard]] int64_t n_tasks() const { return is_split_ ? n_units_ * n_chunks_ : n_units_; }
    [[nodiscard]] int64_t n_chunks() const { return n_chunks_; }
    [[nodiscard]] int64_t n_rows() const { return query_.ne[1] * query_.ne[2] * query_.ne[3]; }
    [[nodiscard]] int64_t value_length() const { return values_.ne[0]; }

    /// The rows of a unit. Row numbers are those of the result, [stream][token][head].
    struct Unit {
        int64_t stream, head;  // of keys and values
        int64_t first, end;    // of the rows that share them, token by token
    };
    [[nodiscard]] Unit unit(int64_t number) const {
        const int64_t part = number % n_parts_, head = number / n_parts_ % keys_.ne[2];
        return {number / n_parts_ / keys_.ne[2], head, part * n_shared_ / n_parts_, (part + 1) * n_shared_ / n_parts_};
    }
    [[nodiscard]] int64_t row(const Unit & unit, size_t i) const {
        const int64_t shared = unit.first + static_cast<int64_t>(i);
        return (unit.stream * query_.ne[1] + token(shared)) * query_.ne[2] + query_head(unit, shared);
    }
    [[nodiscard]] float * result(int64_t row) const { return static_cast<float *>(op_.data) + row * value_length(); }

    /// Completes a row's result, the sum over its chunks.
    void finish(int64_t row, Softmax & softmax) const {
        if (const ggml_tensor * sinks = op_.src[4]; sinks != nullptr) {
            softmax.add_sink(static_cast<const float *>(sinks->data)[row % query_.ne[2]], result(row), value_length());
        }
        softmax.divide(result(row), value_length());
    }

    /// Attends to a chunk of cells. The caller has set the rows' `out`.
    void attend(const Unit & unit, int64_t chunk, std::span<AttentionRow> rows, float * scratch) const {
        const int64_t first = chunk * CHUNK;
        for (size_t i = 0; i < rows.size(); ++i) {
            const int64_t shared = unit.first + static_cast<int64_t>(i);
            rows[i].query =
                reinterpret_cast<const float *>(at(query_, token(shared), query_head(unit, shared), unit.stream));
            rows[i].mask = nullptr;
            if (const ggml_tensor * mask = op_.src[3]; mask != nullptr) {
                rows[i].mask =
                    reinterpret_cast<const uint16_t *>(at(*mask, token(shared), 0, unit.stream % mask->ne[3])) + first;
            }
        }
        const int64_t of_keys = unit.stream / (query_.ne[3] / keys_.ne[3]);
        const AttentionPart part = {rows,
                                    at(keys_, first, unit.head, of_keys),
                                    at(values_, first, unit.head, of_keys),
                                    keys_.nb[1],
                                    values_.nb[1],
                                    static_cast<size_t>(keys_.ne[0]),
                                    static_cast<size_t>(values_.ne[0]),
                                    static_cast<size_t>(std::min(CHUNK, keys_.ne[1] - first)),
                                    parameters_.scale,
                                    parameters_.cap,
                                    scratch};
        (selected_instructions() == Instructions::avx2 ? attend_avx2 : attend_avx512)(part);
    }

    // Work memory, in floats: for each thread its scratch and the sums of a unit; then, if units are split, the rows'
    // chunks.
    [[nodiscard]] int64_t scratch() const {
        const auto length = static_cast<size_t>(value_length());
        return static_cast<int64_t>(attention_scratch(static_cast<size_t>(keys_.ne[0]), length));
    }
    [[nodiscard]] int64_t of_thread() const { return scratch() + MOST_ROWS * value_length(); }
    [[nodiscard]] int64_t of_chunk() const { return 2 + value_length(); }  // maximum, sum, values
    [[nodiscard]] size_t bytes(int n_threads) const {
        const int64_t of_chunks = is_split_ ? n_rows() * n_chunks_ * of_chunk() : 0;
        return whole_lines(1) + static_cast<size_t>(n_threads * of_thread() + of_chunks) * sizeof(float);
    }

  private:
    static const char * at(const ggml_tensor & tensor, int64_t i1, int64_t i2, int64_t i3) {
        return static_cast<const char *>(tensor.data) + static_cast<size_t>(i1) * tensor.nb[1] +
               static_cast<size_t>(i2) * tensor.nb[2] + static_cast<size_t>(i3) * tensor.nb[3];
    }
    [[nodiscard]] int64_t n_heads_together() const { return query_.ne[2] / keys_.ne[2]; }
    [[nodiscard]] int64_t token(int64_t shared) const { return shared / n_heads_together(); }
    [[nodiscard]] int64_t query_head(const Unit & unit, int64_t shared) const {
        return unit.head * n_heads_together() + shared % n_heads_together();
    }

    const ggml_tensor &op_, &query_, &keys_, &values_;
    Parameters parameters_;
    int64_t n_shared_, n_parts_, n_units_, n_chunks_;
    bool is_split_;
};

/// Computes a whole unit, one chunk after another.
void attend_all(const Cut & cut, int64_t task, float * memory) {
    const Cut::Unit unit = cut.unit(task);
    std::array<AttentionRow, MOST_ATTENTION_ROWS> all;
    std::array<Softmax, MOST_ATTENTION_ROWS> softmax;
    const std::span<AttentionRow> rows(all.data(), static_cast<size_t>(unit.end - unit.first));
    const int64_t length = cut.value_length();
    const auto row = [&](size_t i) { return cut.row(unit, i); };
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].out = memory + cut.scratch() + static_cast<int64_t>(i) * length;
        std::fill_n(cut.result(row(i)), length, 0.0F);
    }
    for (int64_t chunk = 0; chunk < cut.n_chunks(); ++chunk) {
        cut.attend(unit, chunk, rows, memory);
        for (size_t i = 0; i < rows.size(); ++i) {
            softmax[i].add(rows[i].maximum, rows[i].sum, rows[i].out, cut.result(row(i)), length);
        }
    }
    for (size_t i = 0; i < rows.size(); ++i) cut.finish(row(i), softmax[i]);
}

/// Computes one chunk of a unit: `chunks` is [row][chunk][of_chunk].
void attend_chunk(const Cut & cut, int64_t task, float * memory, float * chunks) {
    const Cut::Unit unit = cut.unit(task / cut.n_chunks());
    const int64_t chunk = task % cut.n_chunks();
    std::array<AttentionRow, MOST_ATTENTION_ROWS> all;
    const std::span<AttentionRow> rows(all.data(), static_cast<size_t>(unit.end - unit.first));
    const auto result = [&](size_t i) { return chunks + (cut.row(unit, i) * cut.n_chunks() + chunk) * cut.of_chunk(); };
    for (size_t i = 0; i < rows.size(); ++i) rows[i].out = result(i) + 2;
    cut.attend(unit, chunk, rows, memory);
    for (size_t i = 0; i < rows.size(); ++i) {
        result(i)[0] = rows[i].maximum;
        result(i)[1] = rows[i].sum;
    }
}

/// Adds up a row's chunks.
void add_chunks(const Cut & cut, int64_t row, const float * chunks) {
    Softmax softmax;
    float * out = cut.result(row);
    std::fill_n(out, cut.value_length(), 0.0F);
    for (int64_t i = 0; i < cut.n_chunks(); ++i) {
        const float * chunk = chunks + (row * cut.n_chunks() + i) * cut.of_chunk();
        softmax.add(chunk[0], chunk[1], chunk + 2, out, cut.value_length());
    }
    cut.finish(row, softmax);
}

}  // namespace

bool can_attend(const ggml_tensor & op) noexcept {
    if (best_instructions() == Instructions::none || op.op != GGML_OP_FLASH_ATTN_EXT) return false;
    const ggml_tensor &query = *op.src[0], &keys = *op.src[1], &values = *op.src[2];
    const ggml_tensor * mask = op.src[3];
    const auto is_cache = [](const ggml_tensor & tensor) {
        return tensor.type == GGML_TYPE_F16 && tensor.ne[0] % int64_t{ATTENTION_LENGTHS} == 0 &&
               tensor.nb[0] == sizeof(uint16_t);
    };
    return Parameters(op).bias == 0 && query.type == GGML_TYPE_F32 && query.nb[0] == sizeof(float) && is_cache(keys) &&
           is_cache(values) && keys.ne[2] == values.ne[2] && keys.ne[3] == values.ne[3] &&
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1));
}

bool Attention::work_size(int n_threads, const ggml_tensor * op, size_t & size) {
    const Cut cut(*op, n_threads);
    size = cut.bytes(n_threads);
    return true;
}

bool Attention::compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    GGML_ASSERT(ggml_is_contiguous(op));
    const Cut cut(*op, params->nth);
    GGML_ASSERT(params->wsize >= cut.bytes(params->nth));
    auto * begin = static_cast<float *>(at_line(params->wdata));
    float * memory = begin + params->ith * cut.of_thread();
    float * chunks = begin + params->nth * cut.of_thread();

    const CpuBackEnd & back_end = cpu_back_end();
    if (params->ith == 0) back_end.chunk_set(params->threadpool, params->nth);
    back_end.barrier(params->threadpool);
    for (int64_t task = params->ith; task < cut.n_tasks(); task = back_end.chunk_add(params->threadpool, 1)) {
        if (cut.is_split()) {
            attend_chunk(cut, task, memory, chunks);
        } else {
            attend_all(cut, task, memory);
        }
    }
    if (cut.is_split()) {
        back_end.barrier(params->threadpool);
        for (int64_t row = params->ith; row < cut.n_rows(); row += params->nth) add_chunks(cut, row, chunks);
    }
    return true;
}

}  // namespace harp::kernels
