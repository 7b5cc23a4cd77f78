// What a GGUF file says of itself, without its weights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "gguf.h"

namespace harp::cli {

class GgufMetadata {
  public:
    explicit GgufMetadata(const std::string & path);

    /// Whether the file could be read. Otherwise it has no values.
    explicit operator bool() const { return file_ != nullptr; }

    // A value; nothing if there is none of this type.
    [[nodiscard]] std::optional<std::string> text(const std::string & key) const;
    [[nodiscard]] std::optional<uint16_t> uint16(const std::string & key) const;
    [[nodiscard]] std::optional<uint32_t> uint32(const std::string & key) const;

  private:
    [[nodiscard]] std::optional<int64_t> find(const std::string & key, gguf_type type) const;

    std::unique_ptr<gguf_context, void (*)(gguf_context *)> file_;
};

}  // namespace harp::cli
