// Where our kernels attach to ggml: a buffer type of its CPU back end, like its AMX and repack variants.
//
//     load     llama.cpp asks each buffer type in turn whether it can multiply with a weight, ours first. Weights that
//              it takes are packed as they are read from the file; the original is not kept.
//     decode   ggml's CPU back end finds the multiplication by the weight's buffer: multiplication.h, in ggml's own
//              threads.

#include <atomic>
#include <mutex>
#include <optional>
#include <vector>

#include "ggml-backend-impl.h"
#include "harp/kernels.h"
#include "kernels/attention.h"
#include "kernels/cpu_back_end.h"
#include "kernels/multiplication.h"
#include "kernels/packed_weights.h"
#include "traits.h"

namespace harp::kernels {

namespace {

std::atomic<bool> enabled{true};

ggml_backend_buffer_type_t buffer_type();

class BufferType final : public ggml::cpu::extra_buffer_type {
  public:
    bool supports_op(ggml_backend_dev_t /*device*/, const ggml_tensor * op) override {
        if (!is_ours(op->src[0]) || !can_multiply(*op)) return false;
        // a model that is being loaded asks with an empty buffer; a loaded model does not change
        if (op->src[0]->buffer->size == 0 && !enabled) return false;
        const ggml_backend_buffer_t activations = op->src[1]->buffer;
        return op->src[1]->type == GGML_TYPE_F32 &&
               (activations == nullptr || ggml_backend_buft_is_host(activations->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op == GGML_OP_FLASH_ATTN_EXT) {
            return can_attend(*op) && is_multiplied_by_ours(op->src[0]) ? &attention_ : nullptr;
        }
        return is_multiplication(op) && is_ours(op->src[0]) ? &multiplication_ : nullptr;
    }

  private:
    static bool is_ours(const ggml_tensor * weights) {
        return weights != nullptr && weights->buffer != nullptr && weights->buffer->buft == buffer_type();
    }

    static bool is_multiplication(const ggml_tensor * op) {
        return op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID;
    }

    /// Whether `query` is computed from a product with our weights, which means that its model was loaded with our
    /// kernels.
    static bool is_multiplied_by_ours(const ggml_tensor * query) {
        while (query != nullptr && !is_multiplication(query)) query = query->src[0];
        return query != nullptr && is_ours(query->src[0]);
    }

    Multiplication multiplication_;
    Attention attention_;
};

void set_tensor(ggml_backend_buffer_t /*buffer*/, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));  // packing needs the whole matrix
    const auto n_experts = static_cast<size_t>(tensor->ne[2]);
    const size_t bytes = size / n_experts, packed_bytes_each = packed_bytes(*tensor) / n_experts;
    for (size_t i = 0; i < n_experts; ++i) {
        pack(tensor->type, static_cast<const char *>(data) + i * bytes, tensor->ne[0], tensor->ne[1],
             static_cast<char *>(tensor->data) + i * packed_bytes_each);
    }
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) return nullptr;
    buffer->buft = type;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.get_tensor = nullptr;  // packing is not undone
    buffer->iface.cpy_tensor = nullptr;
    return buffer;
}

size_t alloc_size(ggml_backend_buffer_type_t /*type*/, const ggml_tensor * tensor) {
    const size_t packed = packed_bytes(*tensor);
    return packed != 0 ? packed : ggml_nbytes(tensor);
}

ggml_backend_buffer_type_t buffer_type() {
    static BufferType ours;
    static ggml_backend_buffer_type type = {
        {[](ggml_backend_buffer_type_t) { return "HARP"; }, alloc_buffer,
         [](ggml_backend_buffer_type_t) -> size_t { return 64; }, nullptr, alloc_size, nullptr},
        cpu_back_end().device,
        static_cast<ggml::cpu::extra_buffer_type *>(&ours),
    };
    return &type;
}

/// Puts our buffer type first in the CPU back end's list, once. @return true if it is there
bool install() {
    static std::mutex mutex;
    static bool is_installed = false;
    const std::lock_guard lock(mutex);
    if (!is_installed && best_instructions() != Instructions::none && load_cpu_back_end()) {
        auto & types = cpu_back_end().get_extra_buffer_types();
        types.insert(types.begin(), buffer_type());
        is_installed = true;
    }
    return is_installed;
}

}  // namespace
}  // namespace harp::kernels

bool harp_set_kernels(bool is_enabled) {
    using namespace harp::kernels;
    enabled = is_enabled;
    return install() && is_enabled;
}

bool harp_set_kernel_instructions(const char * name) {
    using namespace harp::kernels;
    const std::optional<Instructions> wanted = name != nullptr ? instructions_of(name) : std::nullopt;
    if (!wanted || *wanted == Instructions::none || *wanted > best_instructions()) return false;
    select(*wanted);
    return true;
}

const char * harp_kernel_instructions(void) {
    using namespace harp::kernels;
    return name_of(load_cpu_back_end() ? selected_instructions() : Instructions::none).data();
}
