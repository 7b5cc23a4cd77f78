// Where our kernels stand in ggml: a buffer type of its CPU back end, as its AMX and repack variants are.
//
//     load     llama.cpp asks each buffer type in turn whether it can multiply with a weight; ours is asked first. What it takes is
//              packed as it is read from the file and kept nowhere else.
//     decode   ggml's CPU back end finds by a weight's buffer who multiplies with it; ours does, in ggml's own threads:
//              the batch's tokens are quantised, each by one thread; a barrier; chunks of outputs are taken by whoever is free.

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "harp/kernels.h"
#include "kernels/activations.h"
#include "kernels/multiply.h"
#include "kernels/packed_weights.h"
#include "traits.h"

namespace harp::kernels {

namespace {

std::atomic<bool> enabled{true};

/// What was asked for; the processor may have less.
std::atomic<Instructions> selected{Instructions::amx};

/// What is used from now on: packed weights are the same for all.
Instructions instructions() {
    return std::min(selected.load(), best_instructions());
}

ggml_backend_buffer_type_t buffer_type();

/// A matrix, or several tokens' rows: all dimensions but the first as one.
int64_t n_rows(const ggml_tensor & tensor) {
    return tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
}

/// Row `i`, the dimensions behind the first as one.
char * row(const ggml_tensor & tensor, int64_t i) {
    const int64_t i1 = i % tensor.ne[1], i2 = i / tensor.ne[1] % tensor.ne[2], i3 = i / (tensor.ne[1] * tensor.ne[2]);
    return static_cast<char *>(tensor.data) + static_cast<size_t>(i1) * tensor.nb[1] +
           static_cast<size_t>(i2) * tensor.nb[2] + static_cast<size_t>(i3) * tensor.nb[3];
}

bool is_matrix(const ggml_tensor & tensor) {
    return tensor.ne[2] == 1 && tensor.ne[3] == 1;
}

bool can_multiply(const ggml_tensor & weights) {
    return is_matrix(weights) && can_pack(weights.type, weights.ne[0], weights.ne[1]) &&
           best_instructions() != Instructions::none;
}

/// Bytes up to the next multiple of a cache line.
size_t whole_lines(size_t bytes) {
    constexpr size_t LINE = 64;
    return (bytes + LINE - 1) / LINE * LINE;
}

/// What ggml's work memory holds during a multiplication: the batch's tokens, and scratch memory of each thread.
struct WorkMemory {
    size_t tokens, scratch;

    WorkMemory(const Kernel & kernel, const ggml_tensor & weights, int64_t n_tokens)
        : tokens(whole_lines(kernel.tokens_bytes(weights.type, weights.ne[0], n_tokens))),
          scratch(whole_lines(kernel.scratch_bytes(n_tokens))) {}

    [[nodiscard]] size_t bytes(int n_threads) const {
        return tokens + static_cast<size_t>(n_threads) * scratch +
               whole_lines(1);  // where it begins, ggml does not say
    }
    [[nodiscard]] static char * aligned(void * memory) {
        return reinterpret_cast<char *>(whole_lines(reinterpret_cast<size_t>(memory)));
    }
};

class Multiplication final : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (op->op != GGML_OP_MUL_MAT) return false;
        const int64_t n_tokens = n_rows(*op->src[1]);
        size = WorkMemory(kernel_of(*op->src[0], n_tokens), *op->src[0], n_tokens).bytes(n_threads);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT) return false;
        const ggml_tensor & weights = *op->src[0];
        const ggml_tensor & activations = *op->src[1];
        GGML_ASSERT(activations.nb[0] == sizeof(float) && ggml_is_contiguous(op));

        const int64_t n_tokens = n_rows(activations);
        const Kernel kernel = kernel_of(weights, n_tokens);
        const WorkMemory memory(kernel, weights, n_tokens);
        GGML_ASSERT(memory.bytes(params->nth) <= params->wsize);
        char * tokens = WorkMemory::aligned(params->wdata);
        char * scratch = tokens + memory.tokens + static_cast<size_t>(params->ith) * memory.scratch;

        for (int64_t i = params->ith; i < n_tokens; i += params->nth) {
            kernel.quantize(weights.type, reinterpret_cast<const float *>(row(activations, i)), weights.ne[0], i,
                            tokens);
        }
        if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
        ggml_barrier(params->threadpool);

        // a thread takes chunks of outputs until none is left
        const size_t bytes = group_bytes(weights.type, weights.ne[0]);
        const int64_t n_groups = weights.ne[1] / GROUP;
        const int64_t n_panels = (n_groups + kernel.groups_together - 1) / kernel.groups_together;
        const int64_t n_chunks = std::min<int64_t>(n_panels, int64_t{4} * params->nth);
        const auto first_group = [&](int64_t chunk) {
            return std::min(n_groups, chunk * n_panels / n_chunks * kernel.groups_together);
        };
        for (int64_t chunk = params->ith; chunk < n_chunks; chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t first = first_group(chunk);
            kernel.multiply({static_cast<const char *>(weights.data) + static_cast<size_t>(first) * bytes,
                             first_group(chunk + 1) - first, weights.ne[0], tokens, n_tokens,
                             static_cast<float *>(op->data) + first * GROUP, op->ne[0], scratch});
        }
        return true;
    }

  private:
    static Kernel kernel_of(const ggml_tensor & weights, int64_t n_tokens) {
        return kernel_for(weights.type, n_tokens, instructions());
    }
};

class BufferType final : public ggml::cpu::extra_buffer_type {
  public:
    bool supports_op(ggml_backend_dev_t /*device*/, const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT || !is_ours(op->src[0]) || !can_multiply(*op->src[0])) return false;
        // a model that is being loaded asks with an empty buffer; one that is loaded keeps what it has
        if (op->src[0]->buffer->size == 0 && !enabled) return false;
        const ggml_backend_buffer_t activations = op->src[1]->buffer;
        return op->src[1]->type == GGML_TYPE_F32 &&
               (activations == nullptr || ggml_backend_buft_is_host(activations->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return op->op == GGML_OP_MUL_MAT && is_ours(op->src[0]) ? &multiplication_ : nullptr;
    }

  private:
    static bool is_ours(const ggml_tensor * weights) {
        return weights->buffer != nullptr && weights->buffer->buft == buffer_type();
    }

    Multiplication multiplication_;
};

void set_tensor(ggml_backend_buffer_t /*buffer*/, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));  // packing needs the whole matrix
    pack(tensor->type, data, tensor->ne[0], tensor->ne[1], tensor->data);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) return nullptr;
    buffer->buft = type;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.get_tensor = nullptr;  // there is no way back
    buffer->iface.cpy_tensor = nullptr;
    return buffer;
}

size_t alloc_size(ggml_backend_buffer_type_t /*type*/, const ggml_tensor * tensor) {
    if (!is_matrix(*tensor) || !can_pack(tensor->type, tensor->ne[0], tensor->ne[1])) return ggml_nbytes(tensor);
    return static_cast<size_t>(tensor->ne[1] / GROUP) * group_bytes(tensor->type, tensor->ne[0]);
}

ggml_backend_buffer_type_t buffer_type() {
    static BufferType ours;
    static ggml_backend_buffer_type type = {
        {[](ggml_backend_buffer_type_t) { return "HARP"; }, alloc_buffer,
         [](ggml_backend_buffer_type_t) -> size_t { return 64; }, nullptr, alloc_size, nullptr},
        ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        static_cast<ggml::cpu::extra_buffer_type *>(&ours),
    };
    return &type;
}

}  // namespace
}  // namespace harp::kernels

bool harp_set_kernels(bool is_enabled) {
    using namespace harp::kernels;
    enabled = is_enabled;
    static std::once_flag is_installed;
    std::call_once(is_installed, [&] {
        if (best_instructions() == Instructions::none) return;
        auto & types = ggml_backend_cpu_get_extra_buffer_types();
        types.insert(types.begin(), buffer_type());
    });
    return is_enabled && best_instructions() != Instructions::none;
}

bool harp_set_kernel_instructions(const char * name) {
    using namespace harp::kernels;
    const std::optional<Instructions> wanted = instructions_of(name);
    if (!wanted || *wanted == Instructions::none || *wanted > best_instructions()) return false;
    selected = *wanted;
    return true;
}

const char * harp_kernel_instructions(void) {
    using namespace harp::kernels;
    return name_of(instructions()).data();
}
