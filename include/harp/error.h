// The one exception type of harp: a code for programs and a sentence for people.
#pragma once

#include <stdexcept>
#include <string>

namespace harp {

enum class ErrorCode {
    invalid_option,     ///< a name or value of an option is not allowed; the message names field, value and range
    invalid_batch,      ///< a batch breaks the contract of ForwardPass::decode (empty, bad sequence id, ...)
    unsupported_model,  ///< HARP cannot be used with this model (no look-up of token embeddings, encoder-decoder, ...)
    unsupported_call,   ///< this context cannot do what the call asks for (for example a context shift)
    context_full,       ///< no room in the KV cache
    aborted,            ///< the abort callback said stop
    decode_failed,      ///< llama_decode failed for another reason
    invalid_state,      ///< a saved state cannot be read: truncated, of another kind or of another version
    invalid_input,      ///< bad input from outside: a missing or broken file, an empty prompt, ...
    io,                 ///< reading or writing a file failed (missing, not readable, disk full)
};

/// Stable lower-case name of a code, for JSON and logs ("invalid_option").
[[nodiscard]] const char * to_string(ErrorCode code) noexcept;

/// Every error that leaves harp's C++ API. After it the object that threw is in its state before the call, unless the
/// function says otherwise (ForwardPass::decode does).
class Error : public std::runtime_error {
  public:
    Error(ErrorCode code, const std::string & message) : std::runtime_error(message), code_(code) {}
    [[nodiscard]] ErrorCode code() const noexcept { return code_; }

  private:
    ErrorCode code_;
};

}  // namespace harp
