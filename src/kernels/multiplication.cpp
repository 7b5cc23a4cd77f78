#include "kernels/multiplication.h"

#include <algorithm>
#include <atomic>
#include <span>

#include "kernels/cpu_back_end.h"
#include "kernels/packed_weights.h"
#include "kernels/work_memory.h"

namespace harp::kernels {

namespace {

std::atomic<Instructions> selected{Instructions::amx};

/// A chunk of outputs, which one thread multiplies, is not smaller where a matrix has enough for all threads: a stream from
/// memory takes a while to get going, and AMX uses a slice of the tokens for this many groups.
constexpr int64_t LEAST_GROUPS_OF_CHUNK = 16, LEAST_BYTES_OF_CHUNK = 1 << 20;

/// The product of all dimensions but the first.
int64_t n_rows(const ggml_tensor & tensor) {
    return tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
}

/// The activations for row `row` of an operation's result, where dimensions after the first count as one.
const float * activations_of(const ggml_tensor & op, int64_t row) {
    const ggml_tensor & activations = *op.src[1];
    const int64_t i1 = row % op.ne[1] % activations.ne[1];  // experts may share a token's activations
    const int64_t i2 = row / op.ne[1] % op.ne[2], i3 = row / (op.ne[1] * op.ne[2]);
    return reinterpret_cast<const float *>(
        static_cast<const char *>(activations.data) + static_cast<size_t>(i1) * activations.nb[1] +
        static_cast<size_t>(i2) * activations.nb[2] + static_cast<size_t>(i3) * activations.nb[3]);
}

/// The rows of the result that come from one matrix.
struct Part {
    int64_t matrix;
    int64_t n_tokens;
    const int32_t * rows;  // rows of the result; nullptr: all, in order
    size_t tokens;         // where its quantised tokens begin, in bytes
};

/// Layout of ggml's work memory during an operation.
class WorkMemory {
  public:
    WorkMemory(const ggml_tensor & op, int n_threads)
        : weights_(*op.src[0]), n_threads_(static_cast<size_t>(n_threads)) {
        const int64_t n = n_rows(op);
        if (op.op == GGML_OP_MUL_MAT_ID) {
            const auto n_experts = static_cast<size_t>(weights_.ne[2]);
            rows_ = whole_lines(static_cast<size_t>(n) * sizeof(int32_t));
            parts_ = whole_lines((n_experts + 1) * sizeof(Part));
            // experts with few tokens may use another kernel than experts with many; partly filled tiles at most double
            // the tokens
            for (const int64_t n_tokens : {int64_t{1}, n}) {
                tokens_ = std::max(tokens_, kernel_of(n_tokens).tokens_bytes(weights_.type, weights_.ne[0], 2 * n));
            }
            tokens_ = whole_lines(tokens_) + n_experts * whole_lines(1);  // each expert's tokens begin at a cache line
        } else {
            tokens_ = tokens_bytes(n);
        }
        scratch_ = whole_lines(kernel_of(n).scratch_bytes(n));
    }

    [[nodiscard]] Kernel kernel_of(int64_t n_tokens) const {
        return kernel_for(weights_.type, n_tokens, selected_instructions());
    }
    [[nodiscard]] size_t tokens_bytes(int64_t n_tokens) const {
        return whole_lines(kernel_of(n_tokens).tokens_bytes(weights_.type, weights_.ne[0], n_tokens));
    }

    [[nodiscard]] size_t bytes() const { return whole_lines(1) + rows_ + parts_ + tokens_ + n_threads_ * scratch_; }

    void set(void * memory) { begin_ = static_cast<char *>(at_line(memory)); }

    [[nodiscard]] int32_t * rows() const { return reinterpret_cast<int32_t *>(begin_); }
    [[nodiscard]] Part * parts() const { return reinterpret_cast<Part *>(begin_ + rows_); }
    [[nodiscard]] char * tokens() const { return begin_ + rows_ + parts_; }
    [[nodiscard]] size_t tokens_capacity() const { return tokens_; }
    [[nodiscard]] char * scratch(int thread) const {
        return tokens() + tokens_ + static_cast<size_t>(thread) * scratch_;
    }

  private:
    const ggml_tensor & weights_;
    size_t n_threads_;
    size_t rows_ = 0, parts_ = 0, tokens_ = 0, scratch_ = 0;
    char * begin_ = nullptr;
};

/// Sorts the rows of a mixture's result by expert. After the last part there is one without tokens.
void sort_by_expert(const ggml_tensor & op, const WorkMemory & memory) {
    const ggml_tensor & ids = *op.src[2];  // [n_used][n_tokens]: the expert of each row
    const int64_t n = n_rows(op), n_experts = op.src[0]->ne[2];
    const auto expert = [&](int64_t row) {
        const auto * of_token = static_cast<const char *>(ids.data) + static_cast<size_t>(row / op.ne[1]) * ids.nb[1];
        return *reinterpret_cast<const int32_t *>(of_token + static_cast<size_t>(row % op.ne[1]) * ids.nb[0]);
    };
    Part * parts = memory.parts();
    for (int64_t i = 0; i <= n_experts; ++i) parts[i] = {i, 0, nullptr, 0};
    for (int64_t row = 0; row < n; ++row) {
        GGML_ASSERT(expert(row) >= 0 && expert(row) < n_experts);
        ++parts[expert(row)].n_tokens;
    }
    int32_t * next = memory.rows();
    for (int64_t i = 0; i < n_experts; ++i) {
        parts[i].rows = next;
        next += parts[i].n_tokens;
        parts[i].n_tokens = 0;
    }
    for (int64_t row = 0; row < n; ++row) {
        Part & part = parts[expert(row)];
        memory.rows()[part.rows - memory.rows() + part.n_tokens++] = static_cast<int32_t>(row);
    }
    size_t tokens = 0;
    Part * end = std::remove_if(parts, parts + n_experts, [](const Part & part) { return part.n_tokens == 0; });
    for (Part * part = parts; part != end; ++part) {
        part->tokens = tokens;
        tokens += memory.tokens_bytes(part->n_tokens);
    }
    GGML_ASSERT(tokens <= memory.tokens_capacity());
    *end = {};
}

/// Quantises this thread's share of the tokens.
void quantize(const ggml_compute_params & params, const ggml_tensor & op, std::span<const Part> parts,
              const WorkMemory & memory) {
    const ggml_tensor & weights = *op.src[0];
    int64_t turn = 0;
    for (const Part & part : parts) {
        const Kernel kernel = memory.kernel_of(part.n_tokens);
        for (int64_t i = 0; i < part.n_tokens; ++i, ++turn) {
            if (turn % params.nth != params.ith) continue;
            const int64_t row = part.rows == nullptr ? i : part.rows[i];
            kernel.quantize(weights.type, activations_of(op, row), weights.ne[0], i, memory.tokens() + part.tokens);
        }
    }
}

/// Multiplies chunks of outputs until none is left.
void multiply(const ggml_compute_params & params, const ggml_tensor & op, std::span<const Part> parts,
              const WorkMemory & memory) {
    const ggml_tensor & weights = *op.src[0];
    const size_t bytes = group_bytes(weights.type, weights.ne[0]);
    const int64_t n_outputs = weights.ne[1], n_groups = groups_of(n_outputs);
    const auto n_parts = static_cast<int64_t>(parts.size());
    const int64_t n_panels = (n_groups + GROUPS_TOGETHER - 1) / GROUPS_TOGETHER;
    // at least a few for each thread, and many in a large matrix, so that no thread waits long for the last one
    const int64_t least_groups =
        std::max<int64_t>(LEAST_GROUPS_OF_CHUNK, LEAST_BYTES_OF_CHUNK / static_cast<int64_t>(bytes));
    const int64_t least_chunks = (int64_t{4} * params.nth + n_parts - 1) / n_parts;
    const int64_t n_chunks = std::min(n_panels, std::max(least_chunks, n_groups / least_groups));
    const auto first_group = [&](int64_t chunk) {
        return std::min(n_groups, chunk * n_panels / n_chunks * GROUPS_TOGETHER);
    };
    for (int64_t i = params.ith; i < n_parts * n_chunks; i = cpu_back_end().chunk_add(params.threadpool, 1)) {
        const Part & part = parts[static_cast<size_t>(i / n_chunks)];
        const int64_t first = first_group(i % n_chunks), end = first_group(i % n_chunks + 1);
        const int64_t first_output = first * GROUP, end_output = std::min(n_outputs, end * GROUP);
        const auto * groups =
            static_cast<const char *>(weights.data) + static_cast<size_t>(part.matrix * n_groups + first) * bytes;
        memory.kernel_of(part.n_tokens)
            .multiply({groups, end_output - first_output, weights.ne[0], memory.tokens() + part.tokens, part.n_tokens,
                       static_cast<float *>(op.data) + first_output, op.ne[0], part.rows, memory.scratch(params.ith)});
    }
}

}  // namespace

void select(Instructions instructions) noexcept {
    selected = instructions;
}

Instructions selected_instructions() noexcept {
    return std::min(selected.load(), best_instructions());
}

bool can_multiply(const ggml_tensor & op) noexcept {
    if (best_instructions() == Instructions::none) return false;
    const bool is_one_matrix = op.op == GGML_OP_MUL_MAT && op.src[0]->ne[2] == 1;
    return (is_one_matrix || op.op == GGML_OP_MUL_MAT_ID) && packed_bytes(*op.src[0]) != 0;
}

size_t packed_bytes(const ggml_tensor & weights) noexcept {
    if (weights.ne[3] != 1 || !can_pack(weights.type, weights.ne[0], weights.ne[1])) return 0;
    return static_cast<size_t>(groups_of(weights.ne[1]) * weights.ne[2]) * group_bytes(weights.type, weights.ne[0]);
}

bool Multiplication::work_size(int n_threads, const ggml_tensor * op, size_t & size) {
    size = WorkMemory(*op, n_threads).bytes();
    return true;
}

bool Multiplication::compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    GGML_ASSERT(op->src[1]->nb[0] == sizeof(float) && ggml_is_contiguous(op));
    WorkMemory memory(*op, params->nth);
    GGML_ASSERT(memory.bytes() <= params->wsize);
    memory.set(params->wdata);

    const Part whole = {0, n_rows(*op), nullptr, 0};
    std::span<const Part> parts(&whole, 1);
    if (op->op == GGML_OP_MUL_MAT_ID) {
        if (params->ith == 0) sort_by_expert(*op, memory);
        cpu_back_end().barrier(params->threadpool);
        const Part * end = memory.parts();
        while (end->n_tokens != 0) ++end;
        parts = {memory.parts(), end};
    }
    quantize(*params, *op, parts, memory);
    if (params->ith == 0) cpu_back_end().chunk_set(params->threadpool, params->nth);
    cpu_back_end().barrier(params->threadpool);
    multiply(*params, *op, parts, memory);
    return true;
}

}  // namespace harp::kernels
