// The border between C++ and the C API: exceptions become return values, and their messages harp_last_error().
#pragma once

#include <cstdint>
#include <exception>

#include "harp/error.h"

namespace harp::capi {

/// The message of this thread's last C API call. It becomes "out of memory" if there is no memory to store it.
void set_last_error(const char * text) noexcept;
[[nodiscard]] const char * last_error() noexcept;

/// Runs `call`. @return its value; if it throws, `on_error` of the error's code
template <typename Call, typename OnError>
auto guarded(Call && call, OnError && on_error) noexcept -> decltype(call()) {
    set_last_error("");
    try {
        return call();
    } catch (const Error & error) {
        set_last_error(error.what());
        return on_error(error.code());
    } catch (const std::exception & error) {  // for example out of memory
        set_last_error(error.what());
    } catch (...) {  // callbacks of the caller (observers, samplers, ...) may throw anything
        set_last_error("an exception of an unknown type");
    }
    return on_error(ErrorCode::decode_failed);
}

/// For calls with one error value.
template <typename Value>
auto always(Value value) noexcept {
    return [value](ErrorCode) { return value; };
}
/// For calls that return nothing.
inline void message_alone(ErrorCode /*code*/) noexcept {}
/// For calls that decode: the return value that llama_decode has for this error.
[[nodiscard]] int32_t decode_result(ErrorCode code) noexcept;

}  // namespace harp::capi
