// The C API: finds the ForwardPass of a handle, turns errors into llama.cpp's return values.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "capi/registry.h"
#include "capi/state_file.h"
#include "harp/harp.h"
#include "harp/registration.h"

namespace {

using harp::Error;
using harp::ErrorCode;
using harp::ForwardPass;
using harp::capi::read_state_file;
using harp::capi::StateFile;
using harp::capi::StateKind;
using harp::capi::write_state_file;

thread_local std::string last_error;

struct Defaults {
    std::mutex mutex;
    std::optional<harp::Options> options = harp::Options{};
};

Defaults & defaults() {
    static Defaults instance;
    return instance;
}

/// A C enum by the number it holds: a C program may have put any there, which C++ must not read as the enum.
template <typename To, typename From>
To enum_of(const From & value) {
    static_assert(sizeof(From) == sizeof(int));
    int number = 0;
    std::memcpy(&number, &value, sizeof(number));
    return static_cast<To>(number);
}

harp::Options to_options(const harp_params & params) {
    harp::Options options;
    options.threshold = params.threshold;
    options.beta = params.beta;
    options.perturbation = enum_of<harp::Perturbation>(params.perturbation);
    options.strength = params.strength;
    options.reframings = params.reframings;
    options.schedule = enum_of<harp::Schedule>(params.schedule);
    options.redraw = params.redraw;
    options.scope = enum_of<harp::Scope>(params.scope);
    options.seed = params.seed;
    return options;
}

/// Runs `call`; on an error keeps its message and returns what `on_error` makes of it.
template <typename Call, typename OnError>
auto guarded(Call && call, OnError && on_error) -> decltype(call()) {
    last_error.clear();
    try {
        return call();
    } catch (const Error & error) {
        last_error = error.what();
        return on_error(error.code());
    } catch (const std::exception & error) {  // out of memory
        last_error = error.what();
        return on_error(ErrorCode::decode_failed);
    }
}

int32_t decode_result(ErrorCode code) {
    switch (code) {
        case ErrorCode::context_full: return 1;
        case ErrorCode::aborted: return 2;
        case ErrorCode::invalid_batch: return -1;
        default: return -3;
    }
}

/// Copies `state` to `dst` if it fits. @return bytes copied, 0 if not
size_t copy_state(const std::vector<uint8_t> & state, uint8_t * dst, size_t size) {
    if (state.size() > size) {
        last_error = "the buffer is too small for the state";
        return 0;
    }
    std::memcpy(dst, state.data(), state.size());
    return state.size();
}

size_t zero(ErrorCode /*code*/) {
    return 0;
}

bool never(ErrorCode /*code*/) {
    return false;
}

/// The pass of a handle if HARP is on there, else nullptr.
ForwardPass * find_hesitating(llama_context * ctx) {
    ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr && pass->enabled() ? pass : nullptr;
}

/// Tokens of a file to the caller, as llama.cpp does it: without room for them only their number.
/// @return whether the state is wanted too  @throws Error{invalid_state} if they are more than there is room for
bool give_tokens(const StateFile & file, llama_token * tokens_out, size_t capacity, size_t * n_tokens_out) {
    if (tokens_out != nullptr && file.tokens.size() > capacity) {
        throw Error(ErrorCode::invalid_state, std::to_string(file.tokens.size()) +
                                                  " tokens in the file; there is room for " + std::to_string(capacity));
    }
    *n_tokens_out = file.tokens.size();
    if (tokens_out == nullptr) return false;
    std::copy(file.tokens.begin(), file.tokens.end(), tokens_out);
    return true;
}

}  // namespace

void harp::set_default_options(const std::optional<Options> & options) {
    if (options) validate(*options);
    const std::lock_guard lock(defaults().mutex);
    defaults().options = options;
}

std::optional<harp::Options> harp::default_options() {
    const std::lock_guard lock(defaults().mutex);
    return defaults().options;
}

extern "C" {

harp_params harp_default_params(void) {
    const harp::Options options;
    return {options.threshold,
            options.beta,
            static_cast<harp_perturbation>(options.perturbation),
            options.strength,
            options.reframings,
            static_cast<harp_schedule>(options.schedule),
            options.redraw,
            static_cast<harp_scope>(options.scope),
            options.seed};
}

const char * harp_last_error(void) {
    return last_error.c_str();
}

bool harp_set_default_params(const harp_params * params) {
    return guarded(
        [&] {
            harp::set_default_options(params != nullptr ? std::optional(to_options(*params)) : std::nullopt);
            return true;
        },
        [](ErrorCode) { return false; });
}

bool harp_set_sequence_params(llama_context * ctx, llama_seq_id seq_id, harp_params params) {
    return guarded(
        [&] {
            ForwardPass * pass = harp::capi::find(ctx);
            if (pass == nullptr) throw Error(ErrorCode::invalid_option, "this context has no HARP");
            pass->set_sequence_options(seq_id, to_options(params));
            return true;
        },
        [](ErrorCode) { return false; });
}

bool harp_get_step(llama_context * ctx, int32_t i, harp_step * step) {
    return guarded(
        [&] {
            ForwardPass * pass = harp::capi::find(ctx);
            if (pass == nullptr) throw Error(ErrorCode::invalid_option, "this context has no HARP");
            const harp::StepRecord record = pass->step(i);
            *step = {record.entropy, record.hesitated};
            return true;
        },
        [](ErrorCode) { return false; });
}

void harp_set_prompt_end(llama_context * ctx, llama_seq_id seq_id, llama_pos end) {
    if (ForwardPass * pass = harp::capi::find(ctx)) pass->set_prompt_end(seq_id, end);
}

llama_context * harp_init_from_model(llama_model * model, llama_context_params params) {
    return guarded(
        [&]() -> llama_context * {
            if (model == nullptr) throw Error(ErrorCode::invalid_input, "the model is NULL");
            const std::optional<harp::Options> options = harp::default_options();
            // as harp_set_sampler refuses one: sampled in the graph, tokens would be drawn before the mix
            if (options) params.n_samplers = 0;
            return harp::capi::adopt(std::make_unique<ForwardPass>(*model, params, options));
        },
        [](ErrorCode) { return nullptr; });
}

void harp_free(llama_context * ctx) {
    if (!harp::capi::release(ctx)) llama_free(ctx);
}

uint32_t harp_n_ctx(const llama_context * ctx) {
    const ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->n_ctx() : llama_n_ctx(ctx);
}
uint32_t harp_n_ctx_seq(const llama_context * ctx) {
    const ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->n_ctx_seq() : llama_n_ctx_seq(ctx);
}
uint32_t harp_n_batch(const llama_context * ctx) {
    const ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->n_batch() : llama_n_batch(ctx);
}
uint32_t harp_n_seq_max(const llama_context * ctx) {
    const ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->n_seq_max() : llama_n_seq_max(ctx);
}

int32_t harp_decode(llama_context * ctx, llama_batch batch) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_decode(ctx, batch);
    return guarded(
        [&] {
            pass->decode(batch);
            return 0;
        },
        decode_result);
}

float * harp_get_logits(llama_context * ctx) {
    ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->all_logits() : llama_get_logits(ctx);
}
float * harp_get_logits_ith(llama_context * ctx, int32_t i) {
    ForwardPass * pass = harp::capi::find(ctx);
    return pass != nullptr ? pass->logits(i) : llama_get_logits_ith(ctx, i);
}

void harp_memory_clear(llama_memory_t mem, bool data) {
    ForwardPass * pass = harp::capi::find(mem);
    if (pass == nullptr) return llama_memory_clear(mem, data);
    pass->memory_clear(data);
}
bool harp_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    ForwardPass * pass = harp::capi::find(mem);
    return pass != nullptr ? pass->memory_seq_rm(seq_id, p0, p1) : llama_memory_seq_rm(mem, seq_id, p0, p1);
}
void harp_memory_seq_cp(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    ForwardPass * pass = harp::capi::find(mem);
    if (pass == nullptr) return llama_memory_seq_cp(mem, src, dst, p0, p1);
    guarded([&] { pass->memory_seq_cp(src, dst, p0, p1); }, [](ErrorCode) {});
}
void harp_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id) {
    ForwardPass * pass = harp::capi::find(mem);
    if (pass == nullptr) return llama_memory_seq_keep(mem, seq_id);
    pass->memory_seq_keep(seq_id);
}
void harp_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    ForwardPass * pass = harp::capi::find(mem);
    if (pass == nullptr) return llama_memory_seq_add(mem, seq_id, p0, p1, delta);
    pass->memory_seq_add(seq_id, p0, p1, delta);
}
void harp_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    ForwardPass * pass = harp::capi::find(mem);
    if (pass == nullptr) return llama_memory_seq_div(mem, seq_id, p0, p1, d);
    pass->memory_seq_div(seq_id, p0, p1, d);
}
llama_pos harp_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id) {
    const ForwardPass * pass = harp::capi::find(mem);
    return pass != nullptr ? pass->memory_seq_pos_min(seq_id) : llama_memory_seq_pos_min(mem, seq_id);
}
llama_pos harp_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id) {
    const ForwardPass * pass = harp::capi::find(mem);
    return pass != nullptr ? pass->memory_seq_pos_max(seq_id) : llama_memory_seq_pos_max(mem, seq_id);
}

size_t harp_state_get_size(llama_context * ctx) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_get_size(ctx);
    return guarded([&] { return pass->state_get().size(); }, zero);
}
size_t harp_state_get_data(llama_context * ctx, uint8_t * dst, size_t size) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_get_data(ctx, dst, size);
    return guarded([&] { return copy_state(pass->state_get(), dst, size); }, zero);
}
size_t harp_state_set_data(llama_context * ctx, const uint8_t * src, size_t size) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_set_data(ctx, src, size);
    return guarded(
        [&] {
            pass->state_set({src, size});
            return size;
        },
        zero);
}

size_t harp_state_seq_get_size_ext(llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_seq_get_size_ext(ctx, seq_id, flags);
    return guarded([&] { return pass->state_seq_get(seq_id, flags).size(); }, zero);
}
size_t harp_state_seq_get_data_ext(llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id,
                                   llama_state_seq_flags flags) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_seq_get_data_ext(ctx, dst, size, seq_id, flags);
    return guarded([&] { return copy_state(pass->state_seq_get(seq_id, flags), dst, size); }, zero);
}
size_t harp_state_seq_set_data_ext(llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id,
                                   llama_state_seq_flags flags) {
    ForwardPass * pass = harp::capi::find(ctx);
    if (pass == nullptr) return llama_state_seq_set_data_ext(ctx, src, size, dest_seq_id, flags);
    return guarded(
        [&] {
            pass->state_seq_set({src, size}, dest_seq_id, flags);
            return size;
        },
        zero);
}
size_t harp_state_seq_get_size(llama_context * ctx, llama_seq_id seq_id) {
    return harp_state_seq_get_size_ext(ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_NONE);
}
size_t harp_state_seq_get_data(llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id) {
    return harp_state_seq_get_data_ext(ctx, dst, size, seq_id, LLAMA_STATE_SEQ_FLAGS_NONE);
}
size_t harp_state_seq_set_data(llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id) {
    return harp_state_seq_set_data_ext(ctx, src, size, dest_seq_id, LLAMA_STATE_SEQ_FLAGS_NONE);
}

}  // extern "C"

bool harp_state_save_file(llama_context * ctx, const char * path_session, const llama_token * tokens,
                          size_t n_token_count) {
    ForwardPass * pass = find_hesitating(ctx);
    if (pass == nullptr) return llama_state_save_file(ctx, path_session, tokens, n_token_count);
    return guarded(
        [&] {
            write_state_file(path_session, StateKind::context, {tokens, n_token_count}, pass->state_get());
            return true;
        },
        never);
}
bool harp_state_load_file(llama_context * ctx, const char * path_session, llama_token * tokens_out,
                          size_t n_token_capacity, size_t * n_token_count_out) {
    ForwardPass * pass = find_hesitating(ctx);
    if (pass == nullptr) {
        return llama_state_load_file(ctx, path_session, tokens_out, n_token_capacity, n_token_count_out);
    }
    return guarded(
        [&] {
            const StateFile file = read_state_file(path_session, StateKind::context, tokens_out != nullptr);
            if (give_tokens(file, tokens_out, n_token_capacity, n_token_count_out)) pass->state_set(file.state);
            return true;
        },
        never);
}
size_t harp_state_seq_save_file(llama_context * ctx, const char * filepath, llama_seq_id seq_id,
                                const llama_token * tokens, size_t n_token_count) {
    ForwardPass * pass = find_hesitating(ctx);
    if (pass == nullptr) return llama_state_seq_save_file(ctx, filepath, seq_id, tokens, n_token_count);
    return guarded(
        [&] {
            return write_state_file(filepath, StateKind::sequence, {tokens, n_token_count},
                                    pass->state_seq_get(seq_id));
        },
        zero);
}
size_t harp_state_seq_load_file(llama_context * ctx, const char * filepath, llama_seq_id dest_seq_id,
                                llama_token * tokens_out, size_t n_token_capacity, size_t * n_token_count_out) {
    ForwardPass * pass = find_hesitating(ctx);
    if (pass == nullptr) {
        return llama_state_seq_load_file(ctx, filepath, dest_seq_id, tokens_out, n_token_capacity, n_token_count_out);
    }
    return guarded(
        [&] {
            const StateFile file = read_state_file(filepath, StateKind::sequence, tokens_out != nullptr);
            if (give_tokens(file, tokens_out, n_token_capacity, n_token_count_out)) {
                pass->state_seq_set(file.state, dest_seq_id);
            }
            return file.n_bytes;
        },
        zero);
}

llama_token harp_sampler_sample(llama_sampler * smpl, llama_context * ctx, int32_t idx) {
    ForwardPass * pass = find_hesitating(ctx);
    if (pass == nullptr) return llama_sampler_sample(smpl, ctx, idx);
    const float * logits = pass->logits(idx);
    if (logits == nullptr) {
        last_error = "row " + std::to_string(idx) + " of the last batch is not an output row";
        return LLAMA_TOKEN_NULL;
    }
    std::vector<llama_token_data> candidates;
    candidates.reserve(static_cast<size_t>(pass->n_vocab()));
    for (llama_token id = 0; id < pass->n_vocab(); ++id) candidates.push_back({id, logits[id], 0.0F});
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(smpl, &array);
    if (array.selected < 0) {
        last_error = "the sampler chose no token: its last part must be one that chooses, such as greedy";
        return LLAMA_TOKEN_NULL;
    }
    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(smpl, token);
    return token;
}
bool harp_set_sampler(llama_context * ctx, llama_seq_id seq_id, llama_sampler * smpl) {
    if (find_hesitating(ctx) != nullptr) return smpl == nullptr;
    return llama_set_sampler(ctx, seq_id, smpl);
}
