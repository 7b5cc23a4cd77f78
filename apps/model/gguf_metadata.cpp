#include "model/gguf_metadata.h"

namespace harp::cli {

GgufMetadata::GgufMetadata(const std::string & path)
    : file_(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free) {}

std::optional<int64_t> GgufMetadata::find(const std::string & key, gguf_type type) const {
    const int64_t id = file_ ? gguf_find_key(file_.get(), key.c_str()) : -1;
    if (id < 0 || gguf_get_kv_type(file_.get(), id) != type) return std::nullopt;
    return id;
}

std::optional<std::string> GgufMetadata::text(const std::string & key) const {
    const auto id = find(key, GGUF_TYPE_STRING);
    if (!id) return std::nullopt;
    return gguf_get_val_str(file_.get(), *id);
}

std::optional<uint16_t> GgufMetadata::uint16(const std::string & key) const {
    const auto id = find(key, GGUF_TYPE_UINT16);
    if (!id) return std::nullopt;
    return gguf_get_val_u16(file_.get(), *id);
}

std::optional<uint32_t> GgufMetadata::uint32(const std::string & key) const {
    const auto id = find(key, GGUF_TYPE_UINT32);
    if (!id) return std::nullopt;
    return gguf_get_val_u32(file_.get(), *id);
}

}  // namespace harp::cli
