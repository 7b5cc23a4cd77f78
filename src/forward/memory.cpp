#include "forward/memory.h"

#include <algorithm>

namespace harp::forward {

llama_pos window_begin(const MemoryKind & kind, llama_pos position) {
    return kind.n_swa == 0 ? 0 : std::max(0, position - kind.n_swa + 1);
}

bool can_continue_at(const Memory & memory, llama_seq_id id, llama_pos position, llama_pos first_row) {
    if (position <= 0 || position > memory.last(id)) return true;
    return !memory.kind().is_recurrent && holds_window(memory, id, position, first_row);
}

bool holds_window(const Memory & memory, llama_seq_id id, llama_pos position, llama_pos first_row) {
    if (memory.kind().n_swa == 0 || first_row >= position) return true;
    const llama_pos first = memory.first(id);  // first position still held
    return first >= 0 && first <= first_row;
}

LlamaMemory::LlamaMemory(llama_context & context, bool is_unified)
    : context_(&context), memory_(llama_get_memory(&context)) {
    const llama_model & model = *llama_get_model(&context);
    kind_.is_recurrent = llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model);
    kind_.shares_cells = is_unified && !llama_model_is_recurrent(&model);
    kind_.can_shift = memory_ == nullptr || llama_memory_can_shift(memory_);
    kind_.n_swa = llama_model_n_swa(&model);
}

bool LlamaMemory::remove(llama_seq_id id, llama_pos p0, llama_pos p1) {
    return llama_memory_seq_rm(memory_, id, p0, p1);
}
void LlamaMemory::copy(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) {
    llama_memory_seq_cp(memory_, source, destination, p0, p1);
}
void LlamaMemory::add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) {
    llama_memory_seq_add(memory_, id, p0, p1, delta);
}
void LlamaMemory::divide(llama_seq_id id, llama_pos p0, llama_pos p1, int divisor) {
    llama_memory_seq_div(memory_, id, p0, p1, divisor);
}
llama_pos LlamaMemory::first(llama_seq_id id) const {
    return llama_memory_seq_pos_min(memory_, id);
}
llama_pos LlamaMemory::last(llama_seq_id id) const {
    return llama_memory_seq_pos_max(memory_, id);
}
size_t LlamaMemory::saved_size(llama_seq_id id, llama_state_seq_flags flags) {
    return llama_state_seq_get_size_ext(context_, id, flags);
}
size_t LlamaMemory::save(llama_seq_id id, std::span<uint8_t> to, llama_state_seq_flags flags) {
    return llama_state_seq_get_data_ext(context_, to.data(), to.size(), id, flags);
}
size_t LlamaMemory::load(llama_seq_id id, std::span<const uint8_t> from, llama_state_seq_flags flags) {
    return llama_state_seq_set_data_ext(context_, from.data(), from.size(), id, flags);
}

}  // namespace harp::forward
