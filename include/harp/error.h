// The one exception type of harp: what went wrong, as a code for programs and a sentence for people.
#pragma once

#include <stdexcept>
#include <string>

namespace harp {

enum class ErrorCode {
    invalid_option,     ///< an option's name or value is not allowed; the message names field, value and range
    invalid_batch,      ///< a batch breaks the contract of ForwardPass::decode (empty, bad sequence id, ...)
    unsupported_model,  ///< HARP cannot treat this model (no token embedding look-up, encoder-decoder, ...)
    unsupported_call,   ///< a call that this context cannot serve (for example a LoRA on the embeddings)
    context_full,       ///< no room in the KV cache; the state is as before the call
    aborted,            ///< the abort callback said stop; the state is as before the call
    decode_failed,      ///< llama_decode failed for another reason; the state is as before the call
    invalid_state,      ///< saved state that cannot be read: truncated, foreign or from another version
    invalid_input,      ///< bad input from outside: a missing or broken file, an empty prompt, ...
    io,                 ///< reading or writing a file failed (missing, not readable, disk full)
};

/// Stable lower-case name of a code, for JSON and logs ("invalid_option").
[[nodiscard]] const char * to_string(ErrorCode code) noexcept;

/// Every error that leaves harp's C++ API. The state of the object that threw is as before the call
/// unless the function says otherwise.
class Error : public std::runtime_error {
  public:
    Error(ErrorCode code, const std::string & message) : std::runtime_error(message), code_(code) {}
    [[nodiscard]] ErrorCode code() const noexcept { return code_; }

  private:
    ErrorCode code_;
};

}  // namespace harp
