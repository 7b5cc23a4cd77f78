#include "harp/error.h"

namespace harp {

const char * to_string(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::invalid_option: return "invalid_option";
        case ErrorCode::invalid_batch: return "invalid_batch";
        case ErrorCode::unsupported_model: return "unsupported_model";
        case ErrorCode::unsupported_call: return "unsupported_call";
        case ErrorCode::context_full: return "context_full";
        case ErrorCode::aborted: return "aborted";
        case ErrorCode::decode_failed: return "decode_failed";
        case ErrorCode::invalid_state: return "invalid_state";
        case ErrorCode::invalid_input: return "invalid_input";
        case ErrorCode::io: return "io";
    }
    return "unknown";
}

}  // namespace harp
