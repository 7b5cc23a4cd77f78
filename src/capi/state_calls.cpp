// The C API: states in buffers of the caller and in files.
#include <algorithm>
#include <string>
#include <vector>

#include "capi/guard.h"
#include "capi/registry.h"
#include "capi/state_file.h"
#include "harp/harp.h"

namespace {

using harp::Error;
using harp::ErrorCode;
using harp::ForwardPass;
using harp::capi::always;
using harp::capi::find;
using harp::capi::find_enabled;
using harp::capi::guarded;
using harp::capi::read_state_file;
using harp::capi::StateFile;
using harp::capi::StateKind;
using harp::capi::write_state_file;

constexpr size_t no_bytes = 0;

std::filesystem::path path_of(const char * name) {
    if (name == nullptr) throw Error(ErrorCode::invalid_input, "the path is NULL");
    return name;
}

/// Copies a file's tokens to the caller. As in llama.cpp, without a buffer for them it gives only their number.
/// @return whether the state is wanted too  @throws Error{invalid_state} if the buffer is too small
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

// ---------------------------------------------------------------------------------------------------------------------
// Buffers

size_t harp_state_get_size(llama_context * ctx) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_size() : llama_state_get_size(ctx);
        },
        always(no_bytes));
}
size_t harp_state_get_data(llama_context * ctx, uint8_t * dst, size_t size) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_get({dst, size}) : llama_state_get_data(ctx, dst, size);
        },
        always(no_bytes));
}
size_t harp_state_set_data(llama_context * ctx, const uint8_t * src, size_t size) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_set({src, size}) : llama_state_set_data(ctx, src, size);
        },
        always(no_bytes));
}

size_t harp_state_seq_get_size_ext(llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_seq_size(seq_id, flags)
                                   : llama_state_seq_get_size_ext(ctx, seq_id, flags);
        },
        always(no_bytes));
}
size_t harp_state_seq_get_data_ext(llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id,
                                   llama_state_seq_flags flags) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_seq_get({dst, size}, seq_id, flags)
                                   : llama_state_seq_get_data_ext(ctx, dst, size, seq_id, flags);
        },
        always(no_bytes));
}
size_t harp_state_seq_set_data_ext(llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id,
                                   llama_state_seq_flags flags) {
    return guarded(
        [&] {
            ForwardPass * pass = find(ctx);
            return pass != nullptr ? pass->state_seq_set({src, size}, dest_seq_id, flags)
                                   : llama_state_seq_set_data_ext(ctx, src, size, dest_seq_id, flags);
        },
        always(no_bytes));
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

// ---------------------------------------------------------------------------------------------------------------------
// Files. With HARP off these are llama.cpp's own.

bool harp_state_save_file(llama_context * ctx, const char * path_session, const llama_token * tokens,
                          size_t n_token_count) {
    return guarded(
        [&] {
            ForwardPass * pass = find_enabled(ctx);
            if (pass == nullptr) return llama_state_save_file(ctx, path_session, tokens, n_token_count);
            write_state_file(path_of(path_session), StateKind::context, {tokens, n_token_count}, pass->state_get());
            return true;
        },
        always(false));
}
bool harp_state_load_file(llama_context * ctx, const char * path_session, llama_token * tokens_out,
                          size_t n_token_capacity, size_t * n_token_count_out) {
    return guarded(
        [&] {
            ForwardPass * pass = find_enabled(ctx);
            if (pass == nullptr) {
                return llama_state_load_file(ctx, path_session, tokens_out, n_token_capacity, n_token_count_out);
            }
            const StateFile file = read_state_file(path_of(path_session), StateKind::context);
            // a file without tokens needs no buffer for them
            const bool is_wanted = give_tokens(file, tokens_out, n_token_capacity, n_token_count_out);
            if (is_wanted || file.tokens.empty()) pass->state_set(file.state);
            return true;
        },
        always(false));
}
size_t harp_state_seq_save_file(llama_context * ctx, const char * filepath, llama_seq_id seq_id,
                                const llama_token * tokens, size_t n_token_count) {
    return guarded(
        [&] {
            ForwardPass * pass = find_enabled(ctx);
            if (pass == nullptr) return llama_state_seq_save_file(ctx, filepath, seq_id, tokens, n_token_count);
            return write_state_file(path_of(filepath), StateKind::sequence, {tokens, n_token_count},
                                    pass->state_seq_get(seq_id));
        },
        always(no_bytes));
}
size_t harp_state_seq_load_file(llama_context * ctx, const char * filepath, llama_seq_id dest_seq_id,
                                llama_token * tokens_out, size_t n_token_capacity, size_t * n_token_count_out) {
    return guarded(
        [&] {
            ForwardPass * pass = find_enabled(ctx);
            if (pass == nullptr) {
                return llama_state_seq_load_file(ctx, filepath, dest_seq_id, tokens_out, n_token_capacity,
                                                 n_token_count_out);
            }
            const StateFile file = read_state_file(path_of(filepath), StateKind::sequence);
            if (give_tokens(file, tokens_out, n_token_capacity, n_token_count_out)) {
                pass->state_seq_set(file.state, dest_seq_id);
            }
            return file.n_bytes;
        },
        always(no_bytes));
}
