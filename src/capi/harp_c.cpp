// The C API: options, contexts, decoding, memory. Finds a handle's ForwardPass and turns errors into llama.cpp's return
// values.
#include <cstring>
#include <mutex>
#include <optional>

#include "capi/guard.h"
#include "capi/registry.h"
#include "harp/harp.h"
#include "harp/registration.h"

namespace {

using harp::Error;
using harp::ErrorCode;
using harp::ForwardPass;
using harp::capi::always;
using harp::capi::find;
using harp::capi::find_enabled;
using harp::capi::guarded;
using harp::capi::message_alone;

/// Of contexts from harp_init_from_model.
struct Defaults {
    std::optional<harp::Options> options = harp::Options{};
    uint32_t n_ctx_twin = 0;
};

std::mutex defaults_mutex;
Defaults & defaults() {
    static Defaults instance;
    return instance;
}

Defaults current_defaults() {
    const std::lock_guard lock(defaults_mutex);
    return defaults();
}

/// Reads a C enum as an int first: a C program may have stored any number there, which C++ must not read as an enum.
template <typename To, typename From>
To enum_of(const From & value) {
    static_assert(sizeof(From) == sizeof(int));
    int number = 0;
    std::memcpy(&number, &value, sizeof(number));
    return static_cast<To>(number);
}

harp::Options to_options(const harp_params & params) {
    harp::Options options;
    options.gate = enum_of<harp::Gate>(params.gate);
    options.threshold = params.threshold;
    options.beta = params.beta;
    options.plausibility = params.plausibility;
    options.view = enum_of<harp::View>(params.view);
    options.view_tokens = params.view_tokens;
    options.perturbation = enum_of<harp::Perturbation>(params.perturbation);
    options.strength = params.strength;
    options.reframings = params.reframings;
    options.schedule = enum_of<harp::Schedule>(params.schedule);
    options.redraw = params.redraw;
    options.scope = enum_of<harp::Scope>(params.scope);
    options.seed = params.seed;
    return options;
}

ForwardPass & enabled_pass(const llama_context * ctx) {
    ForwardPass * pass = find_enabled(ctx);
    if (pass == nullptr) throw Error(ErrorCode::invalid_option, "this context has no HARP");
    return *pass;
}

}  // namespace

void harp::set_default_options(const std::optional<Options> & options, uint32_t n_ctx_twin) {
    if (options) {
        validate(*options);
        check_room(*options, n_ctx_twin);
    }
    const std::lock_guard lock(defaults_mutex);
    defaults() = {options, n_ctx_twin};
}

llama_context * harp::init_from_model(llama_model & model, llama_context_params params,
                                      const std::optional<Options> & options, uint32_t n_ctx_twin) {
    // like harp_set_sampler: a sampler inside the graph would draw tokens before the mix
    if (options) params.n_samplers = 0;
    return capi::adopt(std::make_unique<ForwardPass>(model, params, options, n_ctx_twin));
}

std::optional<harp::Options> harp::default_options() {
    return current_defaults().options;
}

// ---------------------------------------------------------------------------------------------------------------------
// Options

harp_params harp_default_params(void) {
    const harp::Options options;
    return {static_cast<harp_gate>(options.gate),
            options.threshold,
            options.beta,
            options.plausibility,
            static_cast<harp_view>(options.view),
            options.view_tokens,
            static_cast<harp_perturbation>(options.perturbation),
            options.strength,
            options.reframings,
            static_cast<harp_schedule>(options.schedule),
            options.redraw,
            static_cast<harp_scope>(options.scope),
            options.seed};
}

bool harp_set_default_params(const harp_params * params) {
    return guarded(
        [&] {
            const auto options = params != nullptr ? std::optional(to_options(*params)) : std::nullopt;
            if (options) validate(*options);
            const std::lock_guard lock(defaults_mutex);
            defaults().options = options;
            return true;
        },
        always(false));
}

void harp_set_default_n_ctx_twin(uint32_t n_ctx_twin) {
    guarded(
        [&] {
            const std::lock_guard lock(defaults_mutex);
            defaults().n_ctx_twin = n_ctx_twin;
        },
        message_alone);
}

bool harp_set_sequence_params(llama_context * ctx, llama_seq_id seq_id, harp_params params) {
    return guarded(
        [&] {
            enabled_pass(ctx).set_sequence_options(seq_id, to_options(params));
            return true;
        },
        always(false));
}

bool harp_get_step(llama_context * ctx, int32_t i, harp_step * step) {
    return guarded(
        [&] {
            if (step == nullptr) throw Error(ErrorCode::invalid_input, "the step is NULL");
            const harp::StepRecord record = enabled_pass(ctx).step(i);
            *step = {record.entropy, record.ratio, record.hesitated};
            return true;
        },
        always(false));
}

bool harp_set_negative_prompt(llama_context * ctx, llama_seq_id seq_id, const llama_token * tokens, size_t n_tokens) {
    return guarded(
        [&] {
            if (tokens == nullptr && n_tokens > 0) throw Error(ErrorCode::invalid_input, "the tokens are NULL");
            enabled_pass(ctx).set_negative_prompt(seq_id, {tokens, tokens + n_tokens});
            return true;
        },
        always(false));
}

void harp_set_prompt_end(llama_context * ctx, llama_seq_id seq_id, llama_pos end) {
    guarded(
        [&] {
            if (ForwardPass * pass = find(ctx)) pass->set_prompt_end(seq_id, end);
        },
        message_alone);
}

// ---------------------------------------------------------------------------------------------------------------------
// Contexts

llama_context * harp_init_from_model(llama_model * model, llama_context_params params) {
    return guarded(
        [&]() -> llama_context * {
            if (model == nullptr) throw Error(ErrorCode::invalid_input, "the model is NULL");
            const auto [options, n_ctx_twin] = current_defaults();
            return harp::init_from_model(*model, params, options, n_ctx_twin);
        },
        always(nullptr));
}

void harp_free(llama_context * ctx) {
    guarded(
        [&] {
            if (!harp::capi::release(ctx)) llama_free(ctx);
        },
        message_alone);
}

uint32_t harp_n_ctx(const llama_context * ctx) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->n_ctx() : llama_n_ctx(ctx);
        },
        always(0U));
}
uint32_t harp_n_ctx_seq(const llama_context * ctx) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->n_ctx_seq() : llama_n_ctx_seq(ctx);
        },
        always(0U));
}
uint32_t harp_n_batch(const llama_context * ctx) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->n_batch() : llama_n_batch(ctx);
        },
        always(0U));
}
uint32_t harp_n_seq_max(const llama_context * ctx) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->n_seq_max() : llama_n_seq_max(ctx);
        },
        always(0U));
}

// ---------------------------------------------------------------------------------------------------------------------
// Decoding

int32_t harp_decode(llama_context * ctx, llama_batch batch) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            if (pass == nullptr) return llama_decode(ctx, batch);
            pass->decode(batch);
            return 0;
        },
        harp::capi::decode_result);
}

float * harp_get_logits(llama_context * ctx) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->all_logits() : llama_get_logits(ctx);
        },
        always(nullptr));
}
float * harp_get_logits_ith(llama_context * ctx, int32_t i) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->logits(i) : llama_get_logits_ith(ctx, i);
        },
        always(nullptr));
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

void harp_memory_clear(llama_memory_t mem, bool data) {
    guarded(
        [&] {
            ForwardPass * pass = find(mem);
            pass != nullptr ? pass->memory_clear(data) : llama_memory_clear(mem, data);
        },
        message_alone);
}
bool harp_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return guarded(
        [&] {
            ForwardPass * pass = find(mem);
            return pass != nullptr ? pass->memory_seq_rm(seq_id, p0, p1) : llama_memory_seq_rm(mem, seq_id, p0, p1);
        },
        always(false));
}
void harp_memory_seq_cp(llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    guarded(
        [&] {
            ForwardPass * pass = find(mem);
            pass != nullptr ? pass->memory_seq_cp(src, dst, p0, p1) : llama_memory_seq_cp(mem, src, dst, p0, p1);
        },
        message_alone);
}
void harp_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id) {
    guarded(
        [&] {
            ForwardPass * pass = find(mem);
            pass != nullptr ? pass->memory_seq_keep(seq_id) : llama_memory_seq_keep(mem, seq_id);
        },
        message_alone);
}
void harp_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    guarded(
        [&] {
            ForwardPass * pass = find(mem);
            pass != nullptr ? pass->memory_seq_add(seq_id, p0, p1, delta)
                            : llama_memory_seq_add(mem, seq_id, p0, p1, delta);
        },
        message_alone);
}
void harp_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    guarded(
        [&] {
            ForwardPass * pass = find(mem);
            pass != nullptr ? pass->memory_seq_div(seq_id, p0, p1, d) : llama_memory_seq_div(mem, seq_id, p0, p1, d);
        },
        message_alone);
}
llama_pos harp_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(mem);
            return pass != nullptr ? pass->memory_seq_pos_min(seq_id) : llama_memory_seq_pos_min(mem, seq_id);
        },
        always(-1));
}
llama_pos harp_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id) {
    return guarded(
        [&] {
            const ForwardPass * pass = find(mem);
            return pass != nullptr ? pass->memory_seq_pos_max(seq_id) : llama_memory_seq_pos_max(mem, seq_id);
        },
        always(-1));
}
