// What kind of model it is, as its file says.
#pragma once

#include <optional>
#include <string>

#include "llama.h"

namespace harp::forward {

/// A value of the model file's metadata as text; empty if there is none.
[[nodiscard]] std::string metadata(const llama_model & model, const std::string & key);

/// Such as "llama"; "unknown" if the file does not say.
[[nodiscard]] std::string architecture(const llama_model & model);

/// Why the model predicts no next token: "it has an encoder"; nothing if it does.
[[nodiscard]] std::optional<std::string> why_no_next_token(const llama_model & model);

}  // namespace harp::forward
