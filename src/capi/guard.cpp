#include "capi/guard.h"

#include <string>

#include "harp/harp.h"

namespace harp::capi {

namespace {

thread_local std::string message;

}  // namespace

void set_last_error(const char * text) noexcept {
    try {
        message = text;
    } catch (...) {
        message = "out of memory";  // short enough to need no allocation
    }
}

const char * last_error() noexcept {
    return message.c_str();
}

int32_t decode_result(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::context_full: return 1;
        case ErrorCode::aborted: return 2;
        case ErrorCode::invalid_batch: return -1;
        default: return -3;
    }
}

}  // namespace harp::capi

const char * harp_last_error(void) {
    return harp::capi::last_error();
}
