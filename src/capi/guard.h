// Between C++ and the C API: what a call throws comes back as a value, with its message in harp_last_error().
#pragma once

#include <cstdint>
#include <exception>

#include "harp/error.h"

namespace harp::capi {

/// This thread's message, of the last call of the C API. One that there is no memory for is cut down to "out of memory".
void set_last_error(const char * text) noexcept;
[[nodiscard]] const char * last_error() noexcept;

/// Runs `call`. @return what it gives; where it throws, what `on_error` makes of the code
template <typename Call, typename OnError>
auto guarded(Call && call, OnError && on_error) noexcept -> decltype(call()) {
    set_last_error("");
    try {
        return call();
    } catch (const Error & error) {
        set_last_error(error.what());
        return on_error(error.code());
    } catch (const std::exception & error) {  // out of memory, for example
        set_last_error(error.what());
    } catch (...) {  // observers, row perturbations and samplers are other people's, in any language
        set_last_error("an exception of an unknown type");
    }
    return on_error(ErrorCode::decode_failed);
}

/// For calls that give the same whatever failed.
template <typename Value>
auto always(Value value) noexcept {
    return [value](ErrorCode) { return value; };
}
/// For calls that give nothing.
inline void message_alone(ErrorCode /*code*/) noexcept {}
/// For calls that decode: llama_decode's return values.
[[nodiscard]] int32_t decode_result(ErrorCode code) noexcept;

}  // namespace harp::capi
